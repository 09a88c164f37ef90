"""The contract of a method, the state of a run, and the only train step there is."""

import dataclasses
import importlib
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ssljax import networks, optim, trees
from ssljax.errors import UserError


# --------------------------------------------------------------------------------------------------------- the contract
@dataclasses.dataclass(frozen=True)
class Run:
    """What a method may know about the run it is in: for schedules that are stated in epochs."""

    steps: int
    batch: int
    examples: int  # in an epoch

    def epochs(self, count):
        """Steps in `count` epochs (int)."""
        return round(count * self.examples / self.batch)


class Method:
    """One objective: a frozen dataclass of hyper-parameters with these functions. All arrays are global; no collectives here.

    params: what the optimizer updates. extra: everything else that lasts (batch statistics, teacher, centre, queue).
    batch: dict of arrays, leading axis B: "views" (B, V, H, W, 3) float32, "crops" (B, L, h, w, 3), "text" int32 (B, T), ...
    s: dict of float32 scalars, the schedules at this step; time enters nowhere else.
    """

    groups = ()  # ((regex, optim.Rule), ...): learning rate, weight decay, freezing by parameter name
    # (state, rows) -> state, ahead of every epoch; rows: what `embed` gives of every training image, numpy, and its "id". It may depend
    # on these alone, so that a run which resumes comes to the same.
    refresh = None

    @property
    def parts(self):
        """{name: Flax module}: the modules among the fields, in order. Each takes what the one before gives."""
        modules = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: module for name, module in modules.items() if isinstance(module, nn.Module)}

    def init(self, rng, batch):
        """-> params, extra: dicts of arrays. Here those of `parts`, and their batch statistics."""
        params, stats = networks.init(self.parts, rng, batch["views"])
        return params, {"stats": stats}

    def weights(self):
        """-> {name: tree of numpy arrays} of other runs' checkpoints, which lie frozen in extra["frozen"] (a tokenizer, a locked tower).
        `init` holds their place with zeros."""
        return {}

    def encode(self, params, extra, batch, rng, s):
        """-> encodings (dict of arrays, leading axis B), extra. The half of the loss that can run on a part of the batch."""
        raise NotImplementedError

    def objective(self, params, extra, encodings, batch, s):
        """-> loss (float32 scalar), (extra, metrics). The half that must see the whole batch. Arrays of extra may be `trees.Moved`."""
        raise NotImplementedError

    def loss(self, params, extra, batch, rng, s):
        """-> loss, (extra, metrics): the two halves."""
        encodings, extra = self.encode(params, extra, batch, rng, s)
        return self.objective(params, extra, encodings, batch, s)

    def after_step(self, params, extra, s):
        """-> extra after the optimizer's update: EMA teachers, and nothing else."""
        return extra

    def embed(self, params, extra, batch):
        """{"image": (B, H, W, 3)} and/or {"text": (B, T)} -> {"features": (B, D), ...} for evaluators. Here the encoder's pooled vector."""
        return networks.features(self.encoder, params, extra["stats"], batch["image"])

    def schedules(self, run):
        """-> {name: step -> float32 scalar}, beside lr and weight_decay."""
        return {}

    def pictures(self, params, extra, batch, rng):
        """Pictures for the report: {section of report.py: {title: normalised images (N, H, W, 3)}}, or {}."""
        return {}


def find(name):
    """The Method class of `name`: a file of ssljax/methods/, or any module on the Python path that holds one Method."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", name):
        raise UserError(f"config.method.name={name!r}: expected a name as Python has them; methods here: {', '.join(available())}")
    try:
        file = importlib.import_module(f"ssljax.methods.{name}" if "." not in name else name)
    except ModuleNotFoundError as error:
        if error.name not in (f"ssljax.methods.{name}", name, name.partition(".")[0]):
            raise
        try:
            file = importlib.import_module(name)
        except ModuleNotFoundError:
            raise UserError(
                f"config.method.name={name!r}: no ssljax/methods/{name}.py and no module {name!r} on the path; "
                f"methods here: {', '.join(available())}"
            ) from None
    classes = [c for c in vars(file).values() if isinstance(c, type) and issubclass(c, Method) and c.__module__ == file.__name__]
    if len(classes) != 1:
        raise UserError(f"config.method.name={name!r}: {file.__name__} should hold one Method, it holds {len(classes)}")
    return classes[0]


def available():
    """Names of the methods that ssljax ships: the files of ssljax/methods/."""
    import pkgutil

    import ssljax.methods

    return sorted(m.name for m in pkgutil.iter_modules(ssljax.methods.__path__))


# ------------------------------------------------------------------------------------------------------------- the state
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that lasts from step to step, and all that a checkpoint holds. step: int32 scalar; rng: raw uint32 key (2,)."""

    params: Any
    extra: Any
    opt: Any
    step: Any
    rng: Any


def init_state(init, tx, rng, batch, *, ema=0.0):
    """A fresh State. init: the method's. batch: an augmented batch, of which only the shapes matter. ema: see `make_train_step`. Run it
    under jit, sharded."""
    params, extra = init(rng, batch)
    if ema:
        extra = {**extra, "average": trees.copy({"params": params, "stats": extra.get("stats", {})})}
    return State(params, extra, tx.init(params), jnp.zeros((), jnp.int32), jax.random.fold_in(rng, 1))


def averaged(params, extra):
    """-> params, extra as `embed` should have them: in a run with optim.ema the averages of weights and batch statistics."""
    if "average" not in extra:
        return params, extra
    average = extra["average"]
    return average["params"], {**extra, **({"stats": average.get("stats", {})} if "stats" in extra else {})}


# -------------------------------------------------------------------------------------------------------------- the step
def _parts(batch, count):
    """Leaves (B, ...) -> (count, B / count, ...). Part i takes every count-th row, so that each device keeps its own rows."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), batch)


def _whole(parts):
    """The inverse of `_parts`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), parts)


def whole_batch_loss(method, microbatch):
    """`method.loss` with the encoders run on `microbatch` examples at a time and the objective on all (GradCache, Gao et al. 2021).

    Its value and gradient are those of the whole batch; only encodings are kept, and encoders run a second time for the gradient.
    What encoders draw at random (dropout, masks) and batch statistics belong to a microbatch. microbatch=0: all at once.
    """

    def loss(params, extra, batch, rng, s):
        count = jax.tree.leaves(batch)[0].shape[0] // microbatch

        def encode(extra, chunk):
            part, i = chunk
            encodings, extra = method.encode(params, extra, part, jax.random.fold_in(rng, i), s)
            return extra, encodings

        extra, encodings = jax.lax.scan(jax.checkpoint(encode), extra, (_parts(batch, count), jnp.arange(count)))
        return method.objective(params, extra, _whole(encodings), batch, s)

    return loss if microbatch else method.loss


def make_train_step(method, tx, schedules, augment, *, accumulate=1, microbatch=0, ema=0.0):
    """-> train_step(state, batch) -> (state, metrics), to be jitted with the state donated.

    accumulate: the batch is taken in that many parts, one after the other, and their gradients averaged. A loss over pairs sees
    the pairs of its part only. microbatch: see `whole_batch_loss`, where it sees all.
    ema: momentum of extra["average"], of weights and batch statistics; 0: there is none. At step t it is at most (1 + t) / (10 + t),
    so that the weights of the start do not weigh longer than the run is old.

    Where the loss or the gradient's norm is not finite nothing but `step` moves, and the metric "nonfinite" is 1: no such number ever
    reaches what a checkpoint holds. `train_step.norms(state, batch)` tells which layer it came from: see `norms`.
    """
    value_and_grad = jax.value_and_grad(whole_batch_loss(method, microbatch), has_aux=True)

    def gradients(state, extra, batch, rng, s):
        (loss, (extra, metrics)), grads = value_and_grad(state.params, extra, augment(batch), rng, s)
        return extra, grads, {"loss": loss, **metrics}

    def accumulated(state, batch, rng, s):
        def one(carry, part):
            extra, total, i = carry
            extra, grads, metrics = gradients(state, extra, part, jax.random.fold_in(rng, i), s)
            return (trees.written(extra), jax.tree.map(jnp.add, total, grads), i + 1), metrics

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        start = (state.extra, zeros, jnp.zeros((), jnp.int32))
        (extra, total, _), metrics = jax.lax.scan(one, start, _parts(batch, accumulate))
        return extra, jax.tree.map(lambda g: g / accumulate, total), jax.tree.map(lambda m: m.mean(0), metrics)

    def backward(state, batch):
        s = {name: schedule(state.step) for name, schedule in schedules.items()}
        rng = jax.random.fold_in(state.rng, state.step)
        if accumulate > 1:
            return s, *accumulated(state, batch, rng, s)
        return s, *gradients(state, state.extra, batch, rng, s)

    def train_step(state, batch):
        s, extra, grads, metrics = backward(state, batch)
        norm = trees.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        updates, opt = tx.update(grads, state.opt, state.params, s=s, step=state.step)
        params = optax.apply_updates(state.params, updates)
        extra = method.after_step(params, extra, s)
        if ema:
            momentum, now = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step)), {"params": params, "stats": extra.get("stats", {})}
            extra = {**extra, "average": trees.ema(state.extra["average"], now, momentum)}
        # A select, not optax.apply_if_finite: extra (statistics, teacher, queue) must be kept as well, and no count lets one through.
        params, extra, opt = trees.chosen(finite, (params, extra, opt), (state.params, state.extra, state.opt))
        metrics = {**metrics, "gradient_norm": norm, "nonfinite": 1.0 - finite.astype(jnp.float32), **s}
        return State(params, extra, opt, state.step + 1, state.rng), metrics

    def norms(state, batch):
        """Norm of each parameter's gradient at this state, {name: float32 scalar, or (layers,) where layers are stacked}."""

        def of(name, gradient):
            axes = tuple(range(1 if re.search(optim.STACKED, name) else 0, gradient.ndim))
            return jnp.sqrt(jnp.sum(jnp.square(gradient.astype(jnp.float32)), axis=axes))

        return {name: of(name, gradient) for name, gradient in trees.names(backward(state, batch)[2])}

    train_step.norms = norms
    return train_step
