"""ConvNeXt (Liu et al. 2022) and ConvNeXt V2 (Woo et al. 2023): depthwise 7x7 convolutions between LayerNorm and an MLP."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssljax.errors import UserError
from ssljax.fields import arg, dtype
from ssljax.models import constrain_batch
from ssljax.models.layers import REMAT, LayerNorm, drop_path, patch_product, stacked, stage_rates
from ssljax.models.transformer import ACTIVATIONS, LayerScale

SIZES = {
    "atto": dict(stages=(2, 2, 6, 2), widths=(40, 80, 160, 320)),
    "femto": dict(stages=(2, 2, 6, 2), widths=(48, 96, 192, 384)),
    "pico": dict(stages=(2, 2, 6, 2), widths=(64, 128, 256, 512)),
    "nano": dict(stages=(2, 2, 8, 2), widths=(80, 160, 320, 640)),
    "T": dict(stages=(3, 3, 9, 3), widths=(96, 192, 384, 768)),
    "S": dict(stages=(3, 3, 27, 3), widths=(96, 192, 384, 768)),
    "B": dict(stages=(3, 3, 27, 3), widths=(128, 256, 512, 1024)),
    "L": dict(stages=(3, 3, 27, 3), widths=(192, 384, 768, 1536)),
    "XL": dict(stages=(3, 3, 27, 3), widths=(256, 512, 1024, 2048)),
    "H": dict(stages=(3, 3, 27, 3), widths=(352, 704, 1408, 2816)),
}
V2 = dict(layer_scale=0.0, response_norm=True)


def size(variant, **changes):
    """ "T" -> the fields of a ConvNeXt-T, "V2-T" of a ConvNeXt V2-T, for a config: `encoder=convnext.size("V2-atto")`."""
    scale = variant.removeprefix("V2-")
    if scale not in SIZES:
        raise UserError(f"ConvNeXt variant {variant!r}: expected SIZE or V2-SIZE with SIZE one of {list(SIZES)}, e.g. 'V2-T'")
    return dict(name="convnext", **SIZES[scale], **(V2 if scale != variant else {})) | changes


class ResponseNorm(nn.Module):
    """Global response normalisation (Woo et al. 2023, Algorithm 1). (B, H, W, C) -> the same."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        scale, bias = (self.param(name, nn.initializers.zeros, (x.shape[-1],)) for name in ("scale", "bias"))
        squares = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(1, 2), keepdims=True)
        norm = jnp.sqrt(jnp.maximum(squares, 1e-24))  # not 0, where the root has no gradient
        relative = (norm / (norm.mean(-1, keepdims=True) + self.epsilon)).astype(x.dtype)
        return scale.astype(x.dtype) * (x * relative) + bias.astype(x.dtype) + x


class Block(nn.Module):
    """x + scale * MLP(LN(depthwise convolution(x))), the branch dropped per example with probability `drop`. (B, H, W, C) -> the same."""

    kernel: int
    activation: str
    layer_scale: float
    response_norm: bool
    norm_eps: float
    drop_path: float
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x, drop):
        width = x.shape[-1]
        dense = dict(dtype=self.dtype, kernel_init=_init)
        y = nn.Conv(width, (self.kernel, self.kernel), padding=self.kernel // 2, feature_group_count=width, name="conv", **dense)(x)
        y = LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name="norm")(y)
        y = ACTIVATIONS[self.activation](nn.Dense(4 * width, name="fc1", **dense)(y))
        y = ResponseNorm(name="response_norm")(y) if self.response_norm else y
        y = nn.Dense(width, name="fc2", **dense)(y)
        y = LayerScale(self.layer_scale, name="scale")(y) if self.layer_scale else y
        if self.train and self.drop_path > 0:
            y = drop_path(y, drop, self.make_rng("drop_path"))
        return constrain_batch(x + y), None


class Stage(nn.Module):
    """[LayerNorm, 2x2 convolution of stride 2], blocks in one `nn.scan`: their parameters have a leading axis. (B, H, W, C) ->
    (B, H/2, W/2, width)."""

    width: int
    downsample: bool
    rates: tuple  # stochastic depth of each block
    remat: str
    block: dict  # fields of Block

    @nn.compact
    def __call__(self, x):
        dtype = self.block["dtype"]
        if self.downsample:
            x = LayerNorm(epsilon=self.block["norm_eps"], dtype=dtype, name="norm")(x)
            x = nn.Conv(self.width, (2, 2), (2, 2), padding="VALID", dtype=dtype, kernel_init=_init,
                        conv_general_dilated=patch_product, name="downsample")(x)  # fmt: skip
        stack = stacked(Block, len(self.rates), self.remat)
        return stack(**self.block, name="blocks")(x, jnp.asarray(self.rates, jnp.float32))[0]


class ConvNeXt(nn.Module):
    """Images (B, H, W, C) -> {"pooled": (B, D), "patches": (B, h*w, D), "stages": [(B, h, w, D), ...]}: the mean of the last feature map
    behind a LayerNorm, that map, and the maps of all stages. With `out`: "embedding" (B, out), linear."""

    image_size: int = arg(224, "side of an example image, pixels; any other will do")
    patch_size: int = arg(4, "side of a patch of the stem, pixels")
    channels: int = arg(3, "channels of an image")
    stages: tuple = arg((3, 3, 9, 3), "number of blocks of each stage")
    widths: tuple = arg((96, 192, 384, 768), "channels of each stage")
    kernel: int = arg(7, "side of the depthwise convolutions")
    activation: str = arg("gelu", "gelu, gelu_tanh, quick_gelu, relu or silu")
    layer_scale: float = arg(1e-6, "initial LayerScale of a block (V1); 0: none")
    response_norm: bool = arg(False, "global response normalisation in a block's MLP (V2)")
    drop_path: float = arg(0.0, "stochastic depth rate of the last block, rising linearly from 0")
    norm_eps: float = arg(1e-6, "epsilon of every LayerNorm but the last")
    last_norm: str = arg("pooled", "what the LayerNorm behind the stages takes: pooled (the mean) or patches (so the mean is of them)")
    last_norm_eps: float = arg(1e-6, "epsilon of the last LayerNorm")
    out: int = arg(0, 'width of "embedding", a linear layer on the pooled vector; 0: none')
    out_bias: bool = arg(False, "a bias of that layer")
    remat: str = arg("none", "what the backward pass recomputes: none, dots, full")
    dtype: str = dtype()

    @nn.compact
    def __call__(self, images, *, train):
        for field, known in (("remat", REMAT), ("activation", ACTIVATIONS), ("last_norm", ("pooled", "patches"))):
            if getattr(self, field) not in known:
                raise UserError(f"{field}={getattr(self, field)!r}: expected one of {', '.join(known)}")
        if len(self.widths) != len(self.stages):
            raise UserError(f"widths={self.widths}: expected one for each of the {len(self.stages)} stages")
        dtype, patch = jnp.dtype(self.dtype), (self.patch_size,) * 2
        x = nn.Conv(self.widths[0], patch, patch, padding="VALID", dtype=dtype, kernel_init=_init,
                    conv_general_dilated=patch_product, name="patch_embed")(images)  # fmt: skip
        x = constrain_batch(LayerNorm(epsilon=self.norm_eps, dtype=dtype, name="patch_norm")(x))
        block = {f: getattr(self, f) for f in ("kernel", "activation", "layer_scale", "response_norm", "norm_eps", "drop_path")}
        block |= dict(train=train, dtype=dtype)
        maps = []
        for i, rates in enumerate(stage_rates(self.drop_path, self.stages)):
            x = Stage(self.widths[i], i > 0, rates, self.remat, block, name=f"stage{i + 1}")(x)
            maps.append(x)
        norm = LayerNorm(epsilon=self.last_norm_eps, dtype=jnp.float32 if self.last_norm == "pooled" else dtype, name="norm")
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = norm(x) if self.last_norm == "patches" else x
        pooled = x.mean(axis=1, dtype=jnp.float32)
        pooled = norm(pooled) if self.last_norm == "pooled" else pooled
        outputs = {"pooled": pooled, "patches": x, "stages": maps}
        if self.out:
            outputs["embedding"] = nn.Dense(self.out, use_bias=self.out_bias, dtype=dtype, kernel_init=_init, name="out")(pooled)
        return outputs

    def example(self):
        """Inputs of a batch of one, which `models.init` may be called with."""
        return (jnp.zeros((1, self.image_size, self.image_size, self.channels)),), {}


_init = nn.initializers.truncated_normal(0.02)
