"""Fixed and resized position tables for patch tokens."""

import jax
import jax.numpy as jnp
import numpy as np


def _sin_cos_1d(positions, frequencies):
    """positions (N,), frequencies (F,) -> [sin, cos] (N, 2F) in float64."""
    angles = positions[:, None] * frequencies[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(height, width, dim, *, layout="mae", cls_token=False):
    """Sine-cosine table over a grid of patches, tokens row-major.

    The three public codebases disagree, so the layout is named:
      "mae"         [column | row], frequencies 10000^(-i / (dim/4))        (He et al. 2021, github.com/facebookresearch/mae)
      "moco_v3"     [row | column], the same frequencies                     (Chen et al. 2021, github.com/facebookresearch/moco-v3)
      "big_vision"  [column | row], frequencies 10000^(-i / (dim/4 - 1))     (github.com/google-research/big_vision)
    With `cls_token` a row of zeros stands in front. -> float32 (height * width [+ 1], dim). Raises ValueError unless dim % 4 == 0.
    """
    if dim % 4:
        raise ValueError(f"sincos_2d needs a width divisible by 4, got {dim}")
    quarter = dim // 4
    last = quarter - 1 if layout == "big_vision" else quarter
    frequencies = 10000.0 ** (-np.arange(quarter, dtype=np.float64) / last)
    rows, columns = (axis.reshape(-1) for axis in np.meshgrid(np.arange(height), np.arange(width), indexing="ij"))
    row_part, column_part = _sin_cos_1d(rows, frequencies), _sin_cos_1d(columns, frequencies)
    halves = {"mae": (column_part, row_part), "moco_v3": (row_part, column_part), "big_vision": (column_part, row_part)}
    if layout not in halves:
        raise ValueError(f"layout {layout!r}: expected one of {sorted(halves)}")
    table = np.concatenate(halves[layout], axis=1)
    if cls_token:
        table = np.concatenate([np.zeros((1, dim)), table])
    return table.astype(np.float32)


def resize(table, source, target):
    """Position table (..., h*w, D) of a `source` = (h, w) grid -> a `target` grid, by bicubic interpolation (DINO's rule)."""
    if tuple(source) == tuple(target):
        return table
    *lead, _, dim = table.shape
    grid = table.reshape(*lead, *source, dim)
    shape = (*lead, *target, dim)
    return jax.image.resize(grid, shape, "bicubic", antialias=False).reshape(*lead, target[0] * target[1], dim).astype(jnp.float32)
