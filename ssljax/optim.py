"""Optimizers as optax chains in which time enters only from outside.

    tx = make("adamw", params=params, groups=(("^head/", Rule(lr=0.1)),), clip_norm=1.0, b2=0.95)
    updates, opt_state = tx.update(grads, opt_state, params, s=s, step=step)

s["lr"] and s["weight_decay"] are float32 scalars, the schedules at this step; `step` is the int32 step, for
freezing. Per parameter they are multiplied by the Rule of the first regex found in the parameter's name
("encoder/transformer/blocks/attn/qkv/kernel"). Parameters under blocks/ hold all layers of a tower, stacked along
axis 0: what is per layer is a vector along that axis.
"""

import dataclasses
import difflib
import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssljax import trees
from ssljax.errors import UserError

# Biases, norm scales, tokens, tables and the like: no weight decay, and no trust ratio in LARS.
NO_DECAY = (
    r"(^|/)(bias|qv_bias|scale|gamma|beta|gain|(cls|dist)_(token|position)|pos_embed|mask_token|logit_scale|logit_bias|registers|probe|query|"
    r"relative)$"
)
EMBEDDINGS = r"(^|/)(patch_embed|token_embed|(cls|dist)_(token|position)|pos_embed|mask_token|registers|first_norm)(/|$)"
STACKED = r"(^|/)blocks/"
HEADS = r"/(qkv|kv|q|query|key|value)/kernel$"  # outputs are (heads, width), behind which of q, k, v where they are one parameter


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a group of parameters gets: factors of s["lr"] and s["weight_decay"], and the step before which it rests.

    weight_decay=None stands for 1, and for 0 where the parameter's name matches NO_DECAY.
    """

    lr: float = 1.0
    weight_decay: float | None = None
    freeze_until: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """A parameter's Rule, resolved. lr: float, or float32 (L, 1, ...) under layer decay of stacked layers."""

    name: str
    lr: Any
    weight_decay: float
    freeze_until: int
    stacked: bool


# -------------------------------------------------------------------------------------------------------- who gets what
def rules(params, groups=()):
    """{name: Rule} for every parameter. Raises UserError for a regex that is broken or matches no parameter."""
    names = [name for name, _ in trees.names(params)]
    for pattern, _ in groups:
        try:
            found = any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise UserError(f"optimizer group {pattern!r} is not a regular expression: {error}") from None
        if not found:
            close = ", ".join(difflib.get_close_matches(pattern, names, n=3, cutoff=0.0))
            raise UserError(f"optimizer group {pattern!r} matches no parameter; close names: {close}")
    out = {}
    for name in names:
        rule = trees.first_match(groups, name, Rule())
        decay = float(not re.search(NO_DECAY, name)) if rule.weight_decay is None else rule.weight_decay
        out[name] = dataclasses.replace(rule, weight_decay=decay)
    return out


def layer_scales(params, decay, *, norm="head"):
    """{name: factor of the learning rate}, decay^(depth + 1 - id) (Clark et al. 2020; MAE, He et al. 2021, A.1).

    id 0: the embeddings of a tower; id i + 1: its block i; depth + 1: all else. The norm behind a tower's blocks goes with
    all else where norm="head" (MAE), with the last block where norm="block" (timm). float32 (L, 1, ...) for stacked layers,
    else a float. Raises UserError for another word.
    """
    if norm not in ("head", "block"):
        raise UserError(f"layer_decay_norm={norm!r}: expected 'head' or 'block'")
    shapes = {name: np.shape(leaf) for name, leaf in trees.names(params)}
    depths = {re.split(STACKED, name)[0]: shape[0] for name, shape in shapes.items() if re.search(STACKED, name)}
    out = {}
    for name, shape in shapes.items():
        embedding = re.search(EMBEDDINGS, name)
        if re.search(STACKED, name):
            ids = np.arange(1, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
            out[name] = np.asarray(float(decay) ** (shape[0] + 1 - ids), np.float32)
        elif embedding:  # of the tower that stands in the same place: encoder/pos_embed, encoder/transformer/blocks/...
            depth = [d for tower, d in depths.items() if f"{tower}/".startswith(name[: embedding.end(1)])]
            out[name] = float(decay) ** (depth[0] + 1) if depth else 1.0
        elif norm == "block" and any(name.startswith(f"{tower}/norm/".lstrip("/")) for tower in depths):
            out[name] = float(decay)
        else:
            out[name] = 1.0
    return out


# ---------------------------------------------------------------------------------------------------- pieces of a chain
def _each(function):
    """A stateless transformation: function(plan of the parameter, update, parameter, s) -> update."""

    def of(plans):
        def update(updates, state, params=None, *, s, **_):
            return trees.map_names(lambda name, u, p: function(plans[name], u, p, s), updates, params), state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    return of


_add_decay = _each(lambda plan, u, p, s: u + s["weight_decay"] * plan.weight_decay * p if plan.weight_decay else u)
_descend = _each(lambda plan, u, p, s: -s["lr"] * plan.lr * u)


def _norm(x, plan):
    """L2 norm of a parameter; of every layer by itself where layers are stacked, (L, 1, ...)."""
    axes = tuple(range(1, x.ndim)) if plan.stacked else None
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=plan.stacked))


# ----------------------------------------------------------------------------------------------------------- optimizers
def sgd(plans, *, momentum=0.9, nesterov=False):
    """Stochastic gradient descent; decay is coupled: it joins the gradient ahead of the momentum."""
    return optax.chain(_add_decay(plans), optax.trace(momentum, nesterov), _descend(plans))


def adamw(plans, *, b1=0.9, b2=0.999, eps=1e-8):
    """AdamW (Loshchilov and Hutter 2019, Algorithm 2); decay is decoupled and multiplied by the learning rate."""
    return optax.chain(optax.scale_by_adam(b1, b2, eps), _add_decay(plans), _descend(plans))


def lion(plans, *, b1=0.9, b2=0.99):
    """Lion (Chen et al. 2023, Algorithm 2); decay is decoupled and multiplied by the learning rate."""
    return optax.chain(optax.scale_by_lion(b1, b2), _add_decay(plans), _descend(plans))


def muon(plans, *, beta=0.95, nesterov=True, b1=0.9, b2=0.999, eps=1e-8):
    """Muon (Jordan et al. 2024): a kernel moves by its momentum, orthogonalised; everything else, and embeddings, as under AdamW.

    Orthogonal directions are scaled by 0.2 sqrt(max(inputs, outputs)), to the size of AdamW's, so that both take s["lr"] (Liu et al. 2025,
    equation 4). Decay is decoupled and multiplied by the learning rate. Layers of a stack are orthogonalised each by itself, and so are
    an attention's queries, keys and values.
    """
    kernels = {name for name in plans if name.endswith("/kernel") and not re.search(EMBEDDINGS, name)}

    def axes(name, x):
        split = re.search(HEADS, name)  # (inputs, [2 or 3 of q, k, v], heads, width)
        first = int(plans[name].stacked)
        return optax.contrib.MuonDimensionNumbers(
            (first,) if split else tuple(range(first, x.ndim - 1)), (x.ndim - 2, x.ndim - 1) if split else (x.ndim - 1,)
        )

    def scale(plan, u, p, s):
        if plan.name not in kernels:
            return u
        numbers = axes(plan.name, u)
        return u * 0.2 * max(np.prod([u.shape[a] for a in side]) for side in numbers) ** 0.5

    directions = {
        "matrix": optax.contrib.scale_by_muon(beta=beta, nesterov=nesterov, weight_dimension_numbers=lambda u: trees.map_names(axes, u)),
        "rest": optax.scale_by_adam(b1, b2, eps),
    }
    labels = lambda tree: trees.map_names(lambda name, _: "matrix" if name in kernels else "rest", tree)  # noqa: E731
    return optax.chain(optax.partition(directions, labels), _each(scale)(plans), _add_decay(plans), _descend(plans))


def lamb(plans, *, b1=0.9, b2=0.999, eps=1e-6, always_adapt=False):
    """LAMB (You et al. 2020, Algorithm 2): AdamW's direction times |parameter| / |direction|, layer by layer.

    Parameters without weight decay keep the plain direction, unless always_adapt.
    """

    def adapt(plan, u, p, s):
        p_norm, u_norm = _norm(p, plan), _norm(u, plan)
        some = (p_norm > 0) & (u_norm > 0) & (always_adapt or s["weight_decay"] * plan.weight_decay != 0)
        return u * jnp.where(some, p_norm / jnp.where(some, u_norm, 1.0), 1.0)

    return optax.chain(optax.scale_by_adam(b1, b2, eps), _add_decay(plans), _each(adapt)(plans), _descend(plans))


def lars(
    plans,
    *,
    momentum=0.9,
    nesterov=False,
    trust_coefficient=0.001,
    eps=0.0,
    norm="joint",
    clip=False,
    always_adapt=True,
    exclude=NO_DECAY,
):
    """LARS (You et al. 2017, Algorithm 1): (gradient + decay) times a trust ratio per layer, ahead of the momentum.

    norm: "joint"     trust = trust_coefficient * |p| / (|g + decay * p| + eps)          (MoCo v3, Barlow Twins)
          "separate"  trust = trust_coefficient * |p| / (|g| + decay * |p| + eps)        (the paper)
          Where a norm is 0 the ratio is 1, and with "separate" there is no decay either.
    clip: trust = min(trust / lr, 1), LARC. always_adapt=False: parameters without weight decay keep the plain gradient.
    exclude: regex of parameters without a trust ratio; their decay is left to the groups.
    """
    if norm not in ("joint", "separate"):
        raise UserError(f"lars norm={norm!r}: expected 'joint' or 'separate'")

    def adapt(plan, u, p, s):
        decay = s["weight_decay"] * plan.weight_decay
        decayed = u + decay * p
        if exclude and re.search(exclude, plan.name):
            return decayed
        p_norm, g_norm = _norm(p, plan), _norm(decayed if norm == "joint" else u, plan)
        some = (p_norm > 0) & (g_norm > 0)
        below = g_norm + eps + (decay * p_norm if norm == "separate" else 0.0)
        ratio = trust_coefficient * p_norm / jnp.where(some, below, 1.0)
        ratio = jnp.minimum(ratio / (s["lr"] * plan.lr), 1.0) if clip else ratio
        adapted = jnp.where(some, decayed * ratio, decayed if norm == "joint" else u)
        return adapted if always_adapt else jnp.where(decay != 0, adapted, u)

    return optax.chain(_each(adapt)(plans), optax.trace(momentum, nesterov), _descend(plans))


OPTIMIZERS = {"sgd": sgd, "adamw": adamw, "lars": lars, "lamb": lamb, "lion": lion, "muon": muon}


# ------------------------------------------------------------------------------------------------------------ all of it
def check(name, hyper):
    """Raises UserError for an optimizer that is not there, or a setting it does not have."""
    if name not in OPTIMIZERS:
        raise UserError(f"optimizer name={name!r}: expected one of {', '.join(OPTIMIZERS)}")
    known = [key for key in inspect.signature(OPTIMIZERS[name]).parameters if key != "plans"]
    unknown = [key for key in hyper if key not in known]
    if unknown:
        raise UserError(f"optimizer {name!r}: unknown {', '.join(map(repr, unknown))}; accepted: {', '.join(known)}")


def make(name, *, params, groups=(), clip_norm=None, layer_decay=None, layer_decay_norm="head", **hyper):
    """-> optax.GradientTransformationExtraArgs, updated with (grads, opt_state, params, s=s, step=step).

    name: a key of OPTIMIZERS; hyper: its settings. params: the tree of arrays or shapes that is going to be updated.
    groups: ((regex, Rule), ...), first match wins. clip_norm: largest global gradient norm. layer_decay: e.g. 0.75;
    layer_decay_norm: `layer_scales`' norm.
    Moments and updates are float32. Before a parameter's freeze_until, its gradient and update are 0 and its moments
    stay as they were made. Raises UserError for unknown names and settings, and as `rules` does.
    """
    check(name, hyper)
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise UserError(f"layer_decay={layer_decay!r}: expected a number above 0 and at most 1")
    scales = layer_scales(params, layer_decay, norm=layer_decay_norm) if layer_decay else {}
    plans = {
        key: Plan(key, rule.lr * scales.get(key, 1.0), rule.weight_decay, rule.freeze_until, bool(re.search(STACKED, key)))
        for key, rule in rules(params, groups).items()
    }
    core = OPTIMIZERS[name](plans, **hyper)
    freezes = trees.map_names(lambda key, _: plans[key].freeze_until, params)
    chain = [optax.clip_by_global_norm(clip_norm)] if clip_norm is not None else []
    if any(plan.freeze_until for plan in plans.values()):
        # One optimizer for each date, counting its own steps: Adam's bias correction starts with the first update.
        parts = {f: _frozen(core, f) if f else core for f in sorted(set(jax.tree.leaves(freezes)))}
        chain = [_hold(plans), *chain, optax.partition(parts, freezes)]
    else:
        chain.append(core)
    return _float32(optax.chain(*chain))


def _hold(plans):
    """Zero gradient while frozen, ahead of clipping: a frozen parameter takes no part in the global norm."""

    def update(updates, state, params=None, *, step, **_):
        return trees.map_names(lambda name, u: jnp.where(step < plans[name].freeze_until, 0.0, u), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _frozen(core, until):
    """`core` from step `until` on; zero updates and an untouched state before."""
    return optax.transforms.conditionally_mask(core, lambda count, *, step, **_: step >= until, forward_extra_args=True)


def _float32(tx):
    """`tx` fed with float32 gradients and parameters: moments are float32 whatever the parameters are."""
    cast = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)  # noqa: E731
    return optax.GradientTransformationExtraArgs(
        lambda params: tx.init(cast(params)),
        lambda updates, state, params, **extra: tx.update(cast(updates), state, cast(params), **extra),
    )
