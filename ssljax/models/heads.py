"""Projection and prediction heads."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssljax import sharding
from ssljax.errors import UserError
from ssljax.fields import arg, dtype
from ssljax.models.layers import BatchNorm, LayerNorm, flat_product
from ssljax.models.transformer import ACTIVATIONS

AFFINE = {"all": {}, "scale": dict(use_bias=False), "none": dict(use_bias=False, use_scale=False)}


class MLP(nn.Module):
    """Projector or predictor: (layers - 1) x [linear, norm, activation], linear, [norm]. (B, D) -> float32 (B, out).

    SimCLR (Chen et al. 2020, section 4.2): 2 layers; v2 and MoCo v3: 3, with the last norm. With `norm="batch"` hidden layers
    have no bias of their own, BatchNorm's stands for it.
    """

    hidden: int = arg(2048, "width of the hidden layers")
    out: int = arg(128, "width of the output")
    layers: int = arg(2, "number of linear layers")
    norm: str = arg("batch", "norm of the hidden layers: batch, layer or none")
    last_norm: bool = arg(False, "BatchNorm of the output as well")
    last_affine: str = arg("scale", "what the last norm learns: all (scale and offset), scale or none")
    bias: tuple = arg((), "biases of (hidden layers, the last one), True or False each; (): where no BatchNorm follows")
    activation: str = arg("relu", "gelu, gelu_tanh, quick_gelu, relu or silu")
    dtype: str = dtype()

    @nn.compact
    def __call__(self, x, *, train):
        if self.last_affine not in AFFINE:
            raise UserError(f"last_affine={self.last_affine!r}: expected one of {', '.join(AFFINE)}")
        hidden_bias, last_bias = self.bias or (self.norm != "batch", not self.last_norm)
        for i in range(1, self.layers):
            x = _hidden(x, i, self.hidden, self.norm, hidden_bias, self.activation, train, self.dtype)
        x = nn.Dense(self.out, use_bias=last_bias, dtype=self.dtype, dot_general=flat_product, name=f"fc{self.layers}")(x)
        if self.last_norm:
            x = BatchNorm(not train, dtype=self.dtype, name=f"bn{self.layers}", **AFFINE[self.last_affine])(x)
        return x.astype(jnp.float32)


class DINOHead(nn.Module):
    """GELU MLP to a bottleneck, L2 norm, weight-normalised linear to `out` prototypes (Caron et al. 2021, appendix C).

    (B, D) -> float32 logits (B, out). The columns of `last_layer/kernel` are divided by their norms at use.
    """

    hidden: int = arg(2048, "width of the hidden layers")
    bottleneck: int = arg(256, "width in front of the prototypes")
    out: int = arg(65536, "number of prototypes")
    layers: int = arg(3, "linear layers up to the bottleneck")
    norm: str = arg("none", "norm of the hidden layers: batch, layer or none")
    bias: tuple = arg((), "biases of (hidden layers, the bottleneck), True or False each; (): where no BatchNorm follows")
    gain: bool = arg(False, "a learned gain of each prototype, which starts at 1; else it is 1")
    dtype: str = dtype()

    @nn.compact
    def __call__(self, x, *, train):
        init = nn.initializers.truncated_normal(0.02)
        hidden_bias, last_bias = self.bias or (self.norm != "batch", True)
        for i in range(1, self.layers):
            x = _hidden(x, i, self.hidden, self.norm, hidden_bias, "gelu", train, self.dtype, init)
        x = nn.Dense(
            self.bottleneck, use_bias=last_bias, dtype=self.dtype, kernel_init=init, dot_general=flat_product, name=f"fc{self.layers}"
        )(x)
        x = _normalise(x.astype(jnp.float32))
        return Prototypes(self.out, self.dtype, self.gain, name="last_layer")(x)


class Prototypes(nn.Module):
    """Weight-normalised linear layer without bias (Salimans and Kingma 2016), gain 1 unless learned. (B, D) -> float32 (B, out)."""

    out: int
    dtype: Any = "float32"
    gain: bool = False

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.truncated_normal(0.02), (x.shape[-1], self.out))
        # The columns' norms divide the logits, not the kernel: their gradient is then a sum over the batch, not over the kernel's rows.
        scale = 1.0 / jnp.sqrt(_column_sums(jnp.square(kernel)) + 1e-12)  # (out,); the epsilon as in `_normalise`
        if self.gain:
            scale = scale * self.param("gain", nn.initializers.ones, (self.out,))
        logits = flat_product(x.astype(self.dtype), kernel.astype(self.dtype), (((x.ndim - 1,), (0,)), ((), ())))
        return logits.astype(jnp.float32) * scale


def _hidden(x, i, width, norm, bias, activation, train, dtype, init=nn.linear.default_kernel_init):
    """Linear layer, norm and activation number `i`, submodules of the calling head."""
    if norm not in ("batch", "layer", "none") or activation not in ACTIVATIONS:
        known = f"norm batch, layer or none, and activation {', '.join(ACTIVATIONS)}"
        raise UserError(f"a head of norm={norm!r} and activation={activation!r}: expected {known}")
    x = nn.Dense(width, use_bias=bias, dtype=dtype, kernel_init=init, dot_general=flat_product, name=f"fc{i}")(x)
    if norm == "batch":
        x = BatchNorm(not train, dtype=dtype, name=f"bn{i}")(x)
    elif norm == "layer":
        x = LayerNorm(epsilon=1e-5, dtype=dtype, name=f"norm{i}")(x)
    return ACTIVATIONS[activation](x)


def _normalise(x):
    # The epsilon is inside the root, so that the gradient of a zero vector is zero and not NaN.
    return x / jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def _column_sums(x):
    """(D, K) -> (K,). On one CPU as a product: XLA's CPU compiler gives the sum of 65,536 columns 0.3 s, and may fuse it into what follows,
    where each row of a batch pays for it again (of a DINO step of 8 s, 2.4)."""
    return (jnp.ones((1, len(x)), x.dtype) @ x)[0] if sharding.one_cpu() else x.sum(axis=0)
