"""Flax Linen modules behind two functions: parameters are plain nested dicts, batch statistics are passed and returned."""

import contextlib
import contextvars
import importlib
import inspect
import math

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from ssljax import sharding
from ssljax.errors import UserError

# name in a config -> (file, class). The file is imported on demand.
MODULES = {
    "vit": ("ssljax.models.vit", "ViT"),
    "resnet": ("ssljax.models.resnet", "ResNet"),
    "convnext": ("ssljax.models.convnext", "ConvNeXt"),
    "swin": ("ssljax.models.swin", "Swin"),
    "text": ("ssljax.models.text", "TextTransformer"),
    "mae_decoder": ("ssljax.models.decoders", "MAEDecoder"),
    "conv_decoder": ("ssljax.models.decoders", "ConvDecoder"),
    "pixel_shuffle": ("ssljax.models.decoders", "PixelShuffle"),
    "image_decoder": ("ssljax.models.decoders", "ImageDecoder"),
    "linear_head": ("ssljax.models.decoders", "LinearHead"),
    "caption_decoder": ("ssljax.models.captioner", "CaptionDecoder"),
    "fusion": ("ssljax.models.captioner", "Fusion"),
    "predictor": ("ssljax.models.decoders", "Predictor"),
    "latent_regressor": ("ssljax.models.decoders", "LatentRegressor"),
    "mlp": ("ssljax.models.heads", "MLP"),
    "dino_head": ("ssljax.models.heads", "DINOHead"),
}


def module_class(name):
    """Class of the module a config calls `name`; "package.module:Class" names one outside ssljax."""
    if ":" in name:
        file, attribute = name.split(":")
    elif name in MODULES:
        file, attribute = MODULES[name]
    else:
        raise UserError(f"model name={name!r}: expected one of {sorted(MODULES)} or 'package.module:Class'")
    return getattr(importlib.import_module(file), attribute)


def init(module, rng, *inputs, **kwargs):
    """-> (params, batch statistics), plain dicts; statistics are {} for a module without BatchNorm."""
    variables = module.init({"params": rng}, *inputs, **kwargs)
    return variables["params"], variables.get("batch_stats", {})


_PASSES = contextvars.ContextVar("passes", default=None)


@contextlib.contextmanager
def passes():
    """-> a list to which every pass of pictures through a network that is traced meanwhile adds its input's shape (N, H, W, C)."""
    seen = []
    token = _PASSES.set(seen)
    try:
        yield seen
    finally:
        _PASSES.reset(token)


def apply(module, params, stats, *inputs, train, rng=None, tokens=True, **kwargs):
    """-> (outputs, new batch statistics). `rng` feeds stochastic depth and is needed only where a module has it.
    tokens=False: of an encoder's outputs no tokens and patches are wanted, which spares a transformer some of its last block."""
    if not tokens and "tokens" in inspect.signature(type(module).__call__).parameters:
        kwargs["tokens"] = False
    if _PASSES.get() is not None and inputs and jnp.ndim(inputs[0]) == 4 and inputs[0].shape[-1] <= 3:
        _PASSES.get().append(inputs[0].shape)
    variables = {"params": params, **({"batch_stats": stats} if stats else {})}
    rngs = {} if rng is None else {"drop_path": rng}
    if train and stats:
        outputs, updated = module.apply(variables, *inputs, train=True, rngs=rngs, mutable=["batch_stats"], **kwargs)
        return outputs, updated["batch_stats"]
    return module.apply(variables, *inputs, train=train, rngs=rngs, **kwargs), stats


def attention(module, params, images):
    """What the first token (a ViT's class token) looks at in the last block: float32 (B, heads, tokens), rows summing to 1; None for a
    network without attention. images: normalised (B, H, W, 3)."""
    _, seen = module.apply({"params": params}, images, train=False, mutable=["intermediates"])
    maps = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(seen) if "attention" in jax.tree_util.keystr(path)]
    return maps[0][-1] if maps else None


def flat_views(views):
    """(B, V, ...) -> (B * V, ...): the views of an example stay together, so a sharded batch axis stays sharded."""
    return views.reshape(-1, *views.shape[2:])


def unflat_views(x, batch):
    """(B * V, ...) -> (V, B, ...), crop-major as losses over views take it."""
    return jnp.moveaxis(x.reshape(batch, -1, *x.shape[1:]), 1, 0)


def constrain_batch(x):
    """Keep the leading axis sharded over the data axes of the mesh in force; nothing where there is no mesh.

    Without it the compiler may follow a sharded parameter instead and leave the batch whole on every device.
    """
    axes = _batch_axes(x)
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(axes)) if axes else x


def as_indexed(x):
    """x (B, ...), which on a GPU lies in memory as it is indexed, an example's numbers together.

    Left to itself its compiler put the first token of all examples first, then the second, where patches come of a product, and turned
    them over at every LayerNorm: a sixth of a ViT-B/16's traffic (compiled for an H200)."""
    mesh, axes = jax.sharding.get_abstract_mesh(), _batch_axes(x)
    if sharding.platform() != "gpu" or (mesh.size > 1 and not axes):
        return x
    pin = lambda x: with_layout_constraint(x, Layout(tuple(range(x.ndim))))  # noqa: E731
    if axes:  # each device its own: a constraint of the whole would gather it
        split = jax.sharding.PartitionSpec(axes)
        pin = jax.shard_map(pin, mesh=mesh, in_specs=split, out_specs=split, axis_names={*axes}, check_vma=False)
    return pin(x)


def _batch_axes(x):
    """The data axes of the mesh in force, which split the leading axis of x; () where there are none, one device, or no even split."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in ("data", "fsdp") if axis in mesh.axis_names)
    even = axes and mesh.size > 1 and x.shape[0] % math.prod(mesh.shape[axis] for axis in axes) == 0
    return axes if even else ()
