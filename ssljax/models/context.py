"""Context networks over grids of patches."""

import flax.linen as nn
import jax.numpy as jnp

from ssljax.fields import arg, dtype


class RowContext(nn.Module):
    """Residual convolutions that look up and never down (after the PixelCNN of CPC v2, Henaff et al. 2019, appendix A.2).

    (B, H, W, D) -> float32 (B, H, W, D): a place sees its own row and those above it, further up with every block."""

    width: int = arg(256, "channels inside a block")
    depth: int = arg(5, "number of blocks, each of which sees one row further up")
    dtype: str = dtype()

    @nn.compact
    def __call__(self, x, *, train):
        del train
        x = x.astype(self.dtype)
        for i in range(self.depth):
            y = nn.relu(nn.Conv(self.width, (1, 1), dtype=self.dtype, name=f"in{i}")(x))
            y = nn.relu(nn.Conv(self.width, (2, 3), padding=((1, 0), (1, 1)), dtype=self.dtype, name=f"up{i}")(y))
            x = x + nn.Conv(x.shape[-1], (1, 1), dtype=self.dtype, name=f"out{i}")(y)
        return nn.relu(x).astype(jnp.float32)
