"""Where tokens are: fixed tables, resized tables, rotary angles, relative positions. All but `resize` are numpy, made at trace time."""

import jax.numpy as jnp
import numpy as np

from ssljax.errors import UserError


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


def sincos_1d(count, dim):
    """Sine-cosine table over `count` tokens in a row, sines at even and cosines at odd channels (Vaswani et al. 2017; VideoMAE).
    -> float32 (count, dim)."""
    channel = np.arange(dim)
    angles = np.arange(count)[:, None] / 10000.0 ** (2 * (channel // 2) / dim)
    return np.where(channel % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def rotary(rows, columns, dim, *, theta=100.0, prefix=0):
    """Axial rotary angles of a grid of patches (DINOv3, Simeoni et al. 2025): the centres of the patches in [-1, 1] times 2 pi theta^-f,
    rows in the first half of the frequencies, columns in the second. dim: of a head. `prefix` tokens in front are not turned.
    -> sin, cos: float32 (prefix + rows * columns, dim), the halves form that `transformer.rotate` takes."""
    if dim % 4:
        raise UserError(f"position='rope' needs heads of a width divisible by 4, got {dim}")
    centres = [2 * (np.arange(n) + 0.5) / n - 1 for n in (rows, columns)]
    grid = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 2)
    frequencies = theta ** -np.arange(0, 1, 4 / dim)
    angles = (2 * np.pi * grid[:, :, None] * frequencies).reshape(len(grid), -1)  # (N, dim / 2)
    angles = np.concatenate([np.zeros((prefix, dim)), np.tile(angles, 2)])
    return np.sin(angles).astype(np.float32), np.cos(angles).astype(np.float32)


def relative_index(rows, columns):
    """Which entry of a table of relative position biases a pair of tokens takes, the class token first (BEiT, Bao et al. 2021).

    -> int32 (1 + N, 1 + N), number of entries: (2 rows - 1)(2 columns - 1) for pairs of patches, then class to patch, patch to class,
    class to class."""
    row, column = (axis.reshape(-1) for axis in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    apart = (row[:, None] - row + rows - 1) * (2 * columns - 1) + column[:, None] - column + columns - 1
    entries = (2 * rows - 1) * (2 * columns - 1) + 3
    index = np.empty((1 + len(row),) * 2, np.int32)
    index[1:, 1:], index[0, :], index[:, 0], index[0, 0] = apart, entries - 3, entries - 2, entries - 1
    return index, entries


# ------------------------------------------------------------------------------------------------------------------ resizing
def _cubic(x, a):
    x = np.abs(x)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _triangle(x):
    return np.maximum(1 - np.abs(x), 0)


def _interpolation(old, new, kernel, reach, scale):
    """(new, old) weights, a sample beyond the border taken at the border (torch's rule without antialias)."""
    centre = (np.arange(new) + 0.5) * scale - 0.5
    first = np.floor(centre).astype(int) - reach + 1
    weights = np.zeros((new, old))
    for step in range(2 * reach):
        at = first + step
        np.add.at(weights, (np.arange(new), np.clip(at, 0, old - 1)), kernel(centre - at))
    return weights


def _antialiased(old, new, kernel, reach):
    """(new, old) weights, the kernel as wide as a new pixel, what lies beyond the border left out (torch's and Pillow's rule)."""
    scale = old / new
    wide = max(scale, 1.0)
    centre = (np.arange(new) + 0.5) * scale
    low = np.maximum((centre - reach * wide + 0.5).astype(int), 0)
    high = np.minimum((centre + reach * wide + 0.5).astype(int), old)
    at = np.arange(old)
    weights = kernel((at - centre[:, None] + 0.5) / wide) * ((at >= low[:, None]) & (at < high[:, None]))
    return weights / weights.sum(axis=1, keepdims=True)


def _corners(old, new):
    """(new, old) weights of linear interpolation from corner to corner."""
    centre = np.arange(new) * ((old - 1) / max(new - 1, 1))
    return _triangle(centre[:, None] - np.arange(old))


# name -> (old, new) -> weights (new, old) of one axis. The public codebases disagree, so the rule is named.
RESIZES = {
    # MAE, Hugging Face, DINOv2 without its offset. Torch's cubic has a = -0.75 (jax.image's -0.5).
    "bicubic": lambda old, new: _interpolation(old, new, lambda x: _cubic(x, -0.75), 2, old / new),
    # DINO: sampled as if the new grid were a tenth of a patch larger (github.com/facebookresearch/dino, interpolate_pos_encoding)
    "bicubic_dino": lambda old, new: _interpolation(old, new, lambda x: _cubic(x, -0.75), 2, old / (new + 0.1)),
    # timm; DINOv2 with registers. With antialias torch's cubic has a = -0.5.
    "bicubic_antialias": lambda old, new: _antialiased(old, new, lambda x: _cubic(x, -0.5), 2),
    "bilinear": lambda old, new: _interpolation(old, new, _triangle, 1, old / new),
    "bilinear_antialias": lambda old, new: _antialiased(old, new, _triangle, 1),
    # big_vision (scipy's zoom of order 1)
    "linear_corners": _corners,
}


def _weights(source, target, rule):
    if rule not in RESIZES:
        raise UserError(f"resize={rule!r}: expected one of {', '.join(RESIZES)}")
    return [RESIZES[rule](old, new) for old, new in zip(source, target, strict=True)]


def resize(table, source, target, rule="bicubic"):
    """Position table (..., h * w, D) of a `source` = (h, w) grid -> a `target` grid, by a rule of RESIZES. float32."""
    if tuple(source) == tuple(target):
        return table
    *lead, _, dim = table.shape
    rows, columns = (jnp.asarray(w, jnp.float32) for w in _weights(source, target, rule))
    grid = table.astype(jnp.float32).reshape(*lead, *source, dim)
    grid = jnp.einsum("ph,qw,...hwd->...pqd", rows, columns, grid, precision="highest")
    return grid.reshape(*lead, target[0] * target[1], dim)


def resize_patches(kernel, size):
    """Kernel (p, p, C, D) of a patch projection -> (size, size, C, D), so that patches of pictures enlarged alike project alike: the
    pseudo-inverse of antialiased bicubic resizing (FlexiViT, Beyer et al. 2022, section 3.4). numpy float64 inside, float32 out."""
    kernel = np.asarray(kernel, np.float64)
    old = kernel.shape[0]
    if old == size:
        return kernel.astype(np.float32)
    one = RESIZES["bicubic_antialias"](old, size)
    down = np.kron(one, one)  # (size^2, old^2): patch of `old` -> patch of `size`
    flat = kernel.reshape(old * old, -1)
    return (np.linalg.pinv(down.T) @ flat).reshape(size, size, *kernel.shape[2:]).astype(np.float32)
