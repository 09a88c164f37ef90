"""Projection and prediction heads."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssljax.fields import arg


class MLP(nn.Module):
    """Projector or predictor: (layers - 1) x [linear, norm, ReLU], linear, [norm]. (B, D) -> float32 (B, out).

    SimCLR (Chen et al. 2020, section 4.2): 2 layers; v2 and MoCo v3: 3, with the last norm. With `norm="batch"` hidden layers
    have no bias of their own, BatchNorm's stands for it.
    """

    hidden: int = arg(2048, "width of the hidden layers")
    out: int = arg(128, "width of the output")
    layers: int = arg(2, "number of linear layers")
    norm: str = arg("batch", "norm of the hidden layers: batch or none")
    last_norm: bool = arg(False, "normalise the output as well, without an offset")
    dtype: str = arg("float32", "compute dtype: float32 or bfloat16")

    @nn.compact
    def __call__(self, x, *, train):
        def norm(name, x, **kwargs):
            return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, name=name, **kwargs)(x)

        for i in range(1, self.layers):
            x = nn.Dense(self.hidden, use_bias=self.norm != "batch", dtype=self.dtype, name=f"fc{i}")(x)
            x = nn.relu(norm(f"bn{i}", x) if self.norm == "batch" else x)
        x = nn.Dense(self.out, use_bias=not self.last_norm, dtype=self.dtype, name=f"fc{self.layers}")(x)
        if self.last_norm:
            x = norm(f"bn{self.layers}", x, use_bias=False)
        return x.astype(jnp.float32)


class DINOHead(nn.Module):
    """GELU MLP to a bottleneck, L2 norm, weight-normalised linear to `out` prototypes (Caron et al. 2021, appendix C).

    (B, D) -> float32 logits (B, out). The columns of `last_layer/kernel` are divided by their norms at use (norm 1, fixed).
    """

    hidden: int = arg(2048, "width of the hidden layers")
    bottleneck: int = arg(256, "width in front of the prototypes")
    out: int = arg(65536, "number of prototypes")
    layers: int = arg(3, "linear layers up to the bottleneck")
    dtype: str = arg("float32", "compute dtype: float32 or bfloat16")

    @nn.compact
    def __call__(self, x, *, train):
        del train  # no norm or dropout: the same function in training and evaluation
        init = nn.initializers.truncated_normal(0.02)
        for i in range(1, self.layers):
            x = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, kernel_init=init, name=f"fc{i}")(x), approximate=False)
        x = nn.Dense(self.bottleneck, dtype=self.dtype, kernel_init=init, name=f"fc{self.layers}")(x)
        x = _normalise(x.astype(jnp.float32), axis=-1)
        return Prototypes(self.out, self.dtype, name="last_layer")(x)


class Prototypes(nn.Module):
    """Weight-normalised linear layer without bias, gain 1. (B, D) -> float32 (B, out)."""

    out: int
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.truncated_normal(0.02), (x.shape[-1], self.out))
        kernel = _normalise(kernel, axis=0)
        return (x.astype(self.dtype) @ kernel.astype(self.dtype)).astype(jnp.float32)


def _normalise(x, axis):
    # The epsilon is inside the root, so that the gradient of a zero vector is zero and not NaN.
    return x / jnp.sqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True) + 1e-12)
