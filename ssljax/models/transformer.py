"""Pre-norm transformer blocks, stacked by `nn.scan`: parameters have a leading layer axis and compile time no depth."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import models
from ssljax.errors import UserError

REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keeps weight matmuls, recomputes attention
    "full": jax.checkpoint_policies.nothing_saveable,  # keeps the input of a block only
}
ACTIVATIONS = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}
kernel_init = nn.initializers.xavier_uniform()


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017), softmax in float32. (B, N, D) -> (B, N, D)."""

    heads: int
    causal: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        # One fused matmul; the head axis is its own axis of the kernel, so a tensor axis of the mesh can shard it.
        qkv = nn.DenseGeneral((3, self.heads, width // self.heads), dtype=self.dtype, kernel_init=_fused_init, name="qkv")(x)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # (B, N, H, D/H)
        y = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
        return nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, kernel_init=kernel_init, name="proj")(y)


def _fused_init(key, shape, dtype=jnp.float32):
    """Xavier-uniform for each of query, key and value on its own, as if they were three layers.

    DenseGeneral asks for the flat shape (D, 3 * D)."""
    width = shape[0]
    limit = jnp.sqrt(6.0 / (width + shape[-1] // 3))
    return jax.random.uniform(key, shape, dtype, -limit, limit)


class MLP(nn.Module):
    """fc2(act(fc1(x)))."""

    hidden: int
    activation: str = "gelu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        x = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=kernel_init, name="fc1")(x)
        x = ACTIVATIONS[self.activation](x)
        return nn.Dense(width, dtype=self.dtype, kernel_init=kernel_init, name="fc2")(x)


class Block(nn.Module):
    """x + Attention(LN(x)); x + MLP(LN(x)); each branch dropped per example with probability `drop` (stochastic depth)."""

    heads: int
    mlp_dim: int
    causal: bool = False
    activation: str = "gelu"
    train: bool = False
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, drop):
        def branch(y):
            if not (self.train and self.drop_path > 0):
                return y
            keep = jax.random.bernoulli(self.make_rng("drop_path"), 1.0 - drop, (y.shape[0], 1, 1))
            return jnp.where(keep, y / (1.0 - drop).astype(y.dtype), 0)

        norm = dict(epsilon=1e-6, dtype=self.dtype)
        y = Attention(self.heads, self.causal, self.dtype, name="attn")(nn.LayerNorm(**norm, name="norm1")(x))
        x = x + branch(y)
        y = MLP(self.mlp_dim, self.activation, self.dtype, name="mlp")(nn.LayerNorm(**norm, name="norm2")(x))
        return models.constrain_batch(x + branch(y)), None


class Transformer(nn.Module):
    """`depth` blocks and the final LayerNorm. Parameters: blocks/... (depth, ...), norm/... . (B, N, D) -> (B, N, D)."""

    depth: int
    heads: int
    mlp_dim: int
    causal: bool = False
    activation: str = "gelu"
    drop_path: float = 0.0  # rate of the last block; grows linearly from 0 (Huang et al. 2016)
    remat: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
        if self.remat not in REMAT:
            raise UserError(f"remat={self.remat!r}: expected one of {sorted(REMAT)}")
        block = Block if self.remat == "none" else nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "drop_path": True},
            length=self.depth,
        )
        rates = self.drop_path * jnp.arange(self.depth) / max(self.depth - 1, 1)
        x, _ = stack(self.heads, self.mlp_dim, self.causal, self.activation, train, self.drop_path, self.dtype, name="blocks")(
            x.astype(self.dtype), rates
        )
        return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
