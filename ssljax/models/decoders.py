"""Decoders of masked modelling."""

import flax.linen as nn
import jax.numpy as jnp

from ssljax.fields import arg
from ssljax.models import positions
from ssljax.models.transformer import Transformer, kernel_init


class MAEDecoder(nn.Module):
    """MAE's decoder (He et al. 2021, section 3): visible tokens back in place, mask tokens elsewhere, blocks, pixels.

    visible (B, [1 +] n, D) in the order of `ids_restore`'s shuffle, ids_restore int (B, N) -> float32 (B, N, patch_size^2 * 3).
    """

    patch_size: int = arg(16, "side of a patch, pixels")
    width: int = arg(512, "width of a token")
    depth: int = arg(8, "number of blocks")
    heads: int = arg(16, "attention heads")
    mlp_dim: int = arg(2048, "hidden width of a block's MLP")
    remat: str = arg("none", "what the backward pass recomputes: none, dots, full")
    dtype: str = arg("float32", "compute dtype: float32 or bfloat16; parameters are float32")

    @nn.compact
    def __call__(self, visible, ids_restore, *, train, cls=None):
        """cls: the encoder's class token (B, D), which the decoder attends to as well, or None."""
        batch, count = ids_restore.shape
        side = round(count**0.5)
        embed = nn.Dense(self.width, dtype=self.dtype, kernel_init=kernel_init, name="embed")
        token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        masked = jnp.broadcast_to(token, (batch, count - visible.shape[1], self.width))
        x = jnp.concatenate([embed(visible), masked.astype(self.dtype)], axis=1)
        x = jnp.take_along_axis(x, ids_restore[..., None], axis=1)  # (B, N, D): unshuffled
        x = x + positions.sincos_2d(side, count // side, self.width)[None].astype(x.dtype)
        if cls is not None:
            x = jnp.concatenate([embed(cls)[:, None], x], axis=1)
        x = Transformer(self.depth, self.heads, self.mlp_dim, remat=self.remat, dtype=jnp.dtype(self.dtype), name="transformer")(
            x, train=train
        )
        x = x[:, -count:]
        pixels = self.patch_size**2 * 3
        return nn.Dense(pixels, dtype=self.dtype, kernel_init=kernel_init, name="pixels")(x).astype(jnp.float32)
