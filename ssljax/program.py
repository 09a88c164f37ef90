"""A config's device program: the sharded, jitted init, train step and embedding, from a checked config and a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import augment, method, optim, schedules, sharding, trees
from ssljax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Program:
    """init() -> State; step(state, raw batch) -> (state, metrics), the state donated; embed(params, extra, batch) -> dict.

    shapes: State of ShapeDtypeStruct with shardings, which is what a checkpoint is restored into.
    """

    method: Any
    augment: Callable
    mesh: Any
    schedules: dict
    shapes: Any
    init: Callable
    step: Callable
    embed: Callable
    train_step: Callable  # before jit: what FLOPs are counted on
    norms: Callable  # (state, batch) -> {parameter: norm of its gradient}; compiled by its first call, which most runs never make

    def put(self, batch):
        """Host rows -> global arrays on the mesh."""
        return sharding.put_batch(self.mesh, batch)

    def fetch(self, array):
        """A global array -> numpy, whole, on every process."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            array = multihost_utils.process_allgather(array, tiled=True)
        return np.asarray(array)

    def normalised(self, images):
        """uint8 pictures, or floats of 0 to 255 -> float32, as the method takes them."""
        return augment.normalise(jnp.asarray(images).astype(jnp.float32) / 255.0, *self.statistics)

    def pixels(self, views):
        """Normalised views -> uint8 pictures."""
        return augment.to_pixels(views, *self.statistics)

    statistics: tuple = ()


def example(built, count=2):
    """A raw batch of blanks, `count` rows, such as this config's data would give; only its shapes and dtypes mean something."""
    side = max(built.data.image_size, *(group.size for group in built.groups.values()), 1)
    rows = np.zeros(count, np.int32)
    raw = {"image": np.zeros((count, side, side, 3), np.uint8), "id": rows, "epoch": rows, "label": rows, "valid": np.ones(count, bool)}
    tower = getattr(built.method, "text", None)
    return raw if tower is None else raw | {"text": np.ones((count, tower.length), np.int32)}


# Of one CPU and a large model. Products of matrices by Eigen, not by YNNPACK, to which XLA's CPU compiler gives them by default: those of a
# ViT-S/16 run at 105 to 130 GFLOP/s on two AVX2 cores, by YNNPACK at 70 to 105; of a tiny transformer's many small ones YNNPACK is faster.
# oneDNN's take half as long as Eigen's in attention alone; a step of a ViT-S takes as long, and XLA (jaxlib 0.10.2) keeps no program that
# calls it for the next start. And copies where they are needed: by its plainer analysis the compiler copies both of Adam's moments at every
# step, a third of AdamW's time, where parameters, which read them, could be written first.
LARGE_ON_CPU = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",  # sums stay as they are by default
    "xla_cpu_copy_insertion_use_region_analysis": True,
}
# A GPU's compiler takes products of one kernel together, as those of large and small crops, and joins and parts what goes in and comes out:
# a ninth of the traffic of DINO's step (compiled for an H200). Below so many MiB.
ON_GPU = {"xla_gpu_dot_merger_threshold_mb": 0}
LARGE_MODEL = 10_000_000  # parameters


def make(config, built, mesh, raw, examples):
    """config: ConfigDict; built: `config.build` of it; raw: a raw batch (only shapes and dtypes are read, the leading axis is
    the global batch); examples: in an epoch. Raises UserError where the batch does not fit the method."""
    run = method.Run(config.steps, config.batch, examples)
    statistics = (built.data.mean, built.data.std)
    augmentation = augment.make(built.groups, seed=config.seed, mean=statistics[0], std=statistics[1])
    plans = {
        "lr": schedules.make(built.lr, config.steps),
        "weight_decay": schedules.make(built.weight_decay, config.steps),
        **built.method.schedules(run),
    }
    two = {k: jax.ShapeDtypeStruct((2, *v.shape[1:]), v.dtype) for k, v in raw.items()}
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(augmentation, two))  # init reads shapes only
    rng = jax.random.PRNGKey(config.seed)
    parameters = jax.jit(lambda rng, batch: built.method.init(rng, batch))  # so that it is traced once: here, and inside of `init`
    try:
        with jax.set_mesh(mesh):
            params, _ = jax.eval_shape(parameters, rng, blank)
    except KeyError as error:
        raise UserError(
            f"method {config.method.name} needs {error} in a batch; config.augment and config.data give "
            f"{', '.join([*built.groups, *(k for k in raw if k != 'image')])}"
        ) from None
    options = dict(built.optim)
    groups = (*built.rules, *built.method.groups)
    for key in ("clip_norm", "layer_decay"):
        options[key] = options.get(key) or None
    ema = options.pop("ema")
    tx = optim.make(options.pop("name"), groups=groups, params=params, **options)

    def init():
        return method.init_state(parameters, tx, rng, blank, ema=ema)

    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(init)
    layout = sharding.state_shardings(shapes, mesh, config.sharding)
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout)
    batch_layout = jax.sharding.NamedSharding(mesh, sharding.BATCH)
    if config.microbatch % (mesh.shape["data"] * mesh.shape["fsdp"]):
        raise UserError(
            f"config.microbatch={config.microbatch} does not divide over data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']} devices"
        )
    parts = dict(accumulate=config.accumulate, microbatch=config.microbatch, ema=ema)
    train_step = method.make_train_step(built.method, tx, plans, augmentation, **parts)

    def embed(params, extra, batch):
        batch = {k: v for k, v in batch.items() if k in ("image", "text")}
        if "image" in batch:
            batch["image"] = augment.normalise(batch["image"].astype(jnp.float32) / 255.0, *statistics)
        outputs = built.method.embed(*method.averaged(params, extra), batch)
        return {k: v.astype(jnp.float32) for k, v in outputs.items()}

    fresh, frozen = _under(mesh, jax.jit(init, out_shardings=layout)), built.method.weights()

    def start():
        state = fresh()
        if not frozen:
            return state
        return dataclasses.replace(state, extra={**state.extra, "frozen": jax.device_put(frozen, layout.extra["frozen"])})

    with jax.set_mesh(mesh):
        large = sharding.one_cpu() and trees.size(shapes.params) >= LARGE_MODEL
        compiler = ON_GPU if sharding.platform() == "gpu" else LARGE_ON_CPU if large else None
        return Program(
            method=built.method,
            augment=augmentation,
            mesh=mesh,
            schedules=plans,
            shapes=shapes,
            init=start,
            step=_under(
                mesh,
                jax.jit(
                    train_step,
                    in_shardings=(layout, batch_layout),
                    out_shardings=(layout, sharding.replicated(mesh)),
                    donate_argnums=0,
                    compiler_options=compiler,
                ),
            ),
            embed=_under(mesh, jax.jit(embed, in_shardings=(layout.params, layout.extra, batch_layout), compiler_options=compiler)),
            train_step=train_step,
            norms=_under(mesh, jax.jit(train_step.norms, in_shardings=(layout, batch_layout), out_shardings=sharding.replicated(mesh))),
            statistics=statistics,
        )


class _under:
    """A jitted function, called with its mesh in force (losses and models look it up there)."""

    def __init__(self, mesh, function):
        self.mesh, self.function = mesh, function

    def __call__(self, *args):
        with jax.set_mesh(self.mesh):
            return self.function(*args)

    def __getattr__(self, name):  # lower, _cache_size
        return getattr(self.function, name)
