"""Pillow's operations on 256 levels, with Pillow's rounding: what ImageOps, ImageEnhance and Image.transform give.

Every function takes and gives float32 (H, W, 3) that holds whole numbers 0..255; factors and thresholds may be traced. Sums are exact below
2^24, which no image within 256 x 256 exceeds. Equal to Pillow value by value; where float32 can take the other side of a rounding (contrast
at a few factors, warps, autocontrast), under 0.5 % of a photograph's values differ, by one level or, in a nearest warp, by one pixel.
"""

import jax.numpy as jnp


def on_levels(function, x):
    """`function` of levels applied to an image in [0, 1], rounded to the nearest of 256 levels first."""
    return function(jnp.round(x * 255.0)) / 255.0


def luma(v):
    """Pillow's convert("L"): (H, W, 3) -> (H, W)."""
    return jnp.floor((19595 * v[..., 0] + 38470 * v[..., 1] + 7471 * v[..., 2] + 32768) / 65536)


def mean_luma(v):
    """The grey that ImageEnhance.Contrast blends with: the mean of convert("L"), rounded."""
    return jnp.floor(luma(v).mean() + 0.5)


def smooth(v):
    """ImageFilter.SMOOTH: 3x3 ones with a 5 in the middle, over 13; the border stays as it is."""
    rows = v[:-2] + v[1:-1] + v[2:]
    inner = jnp.floor((rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * v[1:-1, 1:-1]) / 13 + 0.5)
    return v.at[1:-1, 1:-1].set(inner)


def blend(other, v, factor):
    """Image.blend(other, v, factor), extrapolation included: clipped, then cut down to a level."""
    return jnp.floor(jnp.clip(other + factor * (v - other), 0, 255))


def brightness(v, factor):
    """ImageEnhance.Brightness."""
    return blend(0.0, v, factor)


def contrast(v, factor):
    """ImageEnhance.Contrast."""
    return blend(mean_luma(v), v, factor)


def colour(v, factor):
    """ImageEnhance.Color."""
    return blend(luma(v)[..., None], v, factor)


def sharpness(v, factor):
    """ImageEnhance.Sharpness."""
    return blend(smooth(v), v, factor)


def invert(v):
    """ImageOps.invert."""
    return 255 - v


def solarize(v, threshold):
    """ImageOps.solarize: inverts the levels from `threshold` on."""
    return jnp.where(v >= threshold, 255 - v, v)


def solarize_add(v, add, threshold=128):
    """timm's solarize_add: brightens the levels below `threshold`."""
    return jnp.where(v < threshold, jnp.minimum(v + add, 255), v)


def posterize(v, bits):
    """ImageOps.posterize: keeps the `bits` highest bits; 0 leaves black, as torchvision and timm have it."""
    step = jnp.round(jnp.exp2(8.0 - bits))  # exp2 of a whole number is not always whole
    return jnp.floor(v / step) * step


def autocontrast(v):
    """ImageOps.autocontrast without cutoff: each channel's darkest level to 0 and its brightest to 255; one level stays.

    Whole-number division. Pillow multiplies by a float64 scale and cuts, which now and then falls short of a whole number, by one level.
    """
    v = v.astype(jnp.int32)
    low, high = v.min((0, 1)), v.max((0, 1))
    stretched = (v - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, v).astype(jnp.float32)


def histogram(v):
    """(H, W, 3) -> int32 (3, 256)."""
    count = lambda plane: jnp.zeros(256, jnp.int32).at[plane].add(1, mode="promise_in_bounds")  # noqa: E731
    return jnp.stack([count(v[..., c].astype(jnp.int32)) for c in range(3)])


def equalize(v):
    """ImageOps.equalize: each channel through the running sum of its own histogram; a channel of one level, or a tiny one, stays."""
    counts = histogram(v)
    total = counts.sum(1)
    brightest = 255 - jnp.argmax(counts[:, ::-1] > 0, axis=1)
    step = (total - jnp.take_along_axis(counts, brightest[:, None], 1)[:, 0]) // 255
    below = jnp.cumsum(counts, 1) - counts
    table = jnp.clip((step[:, None] // 2 + below) // jnp.maximum(step, 1)[:, None], 0, 255)
    table = jnp.where(step[:, None] > 0, table, jnp.arange(256))
    # Channel by channel: a TPU would lay numbers looked up for lines of three out in lines of 128.
    planes = [row.astype(jnp.float32).at[v[..., c].astype(jnp.int32)].get(mode="promise_in_bounds") for c, row in enumerate(table)]
    return jnp.stack(planes, axis=-1)


def affine(v, matrix, fill=0.0, interpolation="nearest"):
    """Image.transform(size, AFFINE, matrix): the pixel at (x, y) comes from (a x + b y + c, d x + e y + f), centres at halves.

    matrix: float32 (6,), a to f, may be traced. fill: level of what lies outside. interpolation: nearest or bilinear (static).
    Coordinates are float32, Pillow's are float64 or 16.16 fixed point: a pixel that lies on a border between two may take the other.
    """
    height, width, _ = v.shape
    a, b, c, d, e, f = matrix
    x = jnp.arange(width, dtype=jnp.float32)[None, :] + 0.5
    y = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
    across, down = a * x + b * y + c, d * x + e * y + f
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)

    def pixel(row, column):
        at = jnp.clip(row, 0, height - 1).astype(jnp.int32), jnp.clip(column, 0, width - 1).astype(jnp.int32)
        return v.at[at].get(mode="promise_in_bounds")

    if interpolation == "nearest":
        out = pixel(jnp.floor(down), jnp.floor(across))
    else:
        top, left = jnp.floor(down - 0.5), jnp.floor(across - 0.5)
        right, low = (across - 0.5 - left)[..., None], (down - 0.5 - top)[..., None]
        above = pixel(top, left) * (1 - right) + pixel(top, left + 1) * right
        below = pixel(top + 1, left) * (1 - right) + pixel(top + 1, left + 1) * right
        out = jnp.floor(above * (1 - low) + below * low)
    return jnp.where(inside[..., None], out, fill)


def shear_x(amount):
    """Matrix of x + amount * y."""
    return _matrix(1, amount, 0, 0, 1, 0)


def shear_y(amount):
    """Matrix of y + amount * x."""
    return _matrix(1, 0, 0, amount, 1, 0)


def translate(right, down):
    """Matrix that moves the picture by so many pixels."""
    return _matrix(1, 0, -right, 0, 1, -down)


def rotate(degrees, height, width):
    """Matrix of Image.rotate: counter-clockwise about the centre."""
    angle = -jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return _matrix(cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)


def _matrix(*entries):
    return jnp.stack([jnp.asarray(entry, jnp.float32) for entry in entries])
