"""Histograms of oriented gradients (Dalal and Triggs 2005), on the device: what MaskFeat predicts."""

import jax.numpy as jnp
import numpy as np

from ssljax.errors import UserError


def hog(images, *, cell=8, orientations=9, eps=1e-5):
    """Per cell and channel, the magnitudes of the gradients by orientation, of unit L2 norm.

    images: (B, H, W, C). The gradient is the difference of the two neighbours of a pixel, 0 at the border; its orientation, 0 to 180
    degrees, falls into one of `orientations` bins. scikit-image's hog of a channel with cells_per_block=(1, 1), block_norm="L2".
    -> (B, H / cell, W / cell, C, orientations) float32. Raises UserError unless `cell` divides H and W.
    """
    batch, height, width, channels = images.shape
    if height % cell or width % cell:
        raise UserError(f"cell={cell} does not divide the image, {height} x {width} pixels")
    x = images.astype(jnp.float32)
    row = jnp.pad(x[:, 2:] - x[:, :-2], ((0, 0), (1, 1), (0, 0), (0, 0)))
    column = jnp.pad(x[:, :, 2:] - x[:, :, :-2], ((0, 0), (0, 0), (1, 1), (0, 0)))
    magnitude = jnp.hypot(row, column)
    angle = jnp.rad2deg(jnp.arctan2(row, column)) % 180.0
    edges = np.linspace(0, 180, orientations + 1, dtype=np.float32)
    inside = (angle[..., None] >= edges[:-1]) & (angle[..., None] < edges[1:])
    votes = magnitude[..., None] * inside
    cells = votes.reshape(batch, height // cell, cell, width // cell, cell, channels, orientations).sum((2, 4)) / cell**2
    return cells / jnp.sqrt(jnp.sum(jnp.square(cells), -1, keepdims=True) + eps**2)
