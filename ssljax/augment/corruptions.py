"""The fifteen corruptions of ImageNet-C (Hendrycks and Dietterich 2019) at five severities, as device operations.

    corrupted = corruptions.apply("fog", key, images, severity=3)        # float32 (B, H, W, 3) in [0, 1], the same out

Constants are those of the authors' make_imagenet_c.py, whose pictures have 224 pixels: lengths in pixels are taken in proportion to the
side. What differs from there, since it cannot be run on a device or shipped: glass blur moves all pixels of a pass at once, not one after
another; frost is drawn, where there it is cut from photographs; JPEG is the transform and quantisation without the entropy coding, which
loses nothing.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.augment import photometric
from ssljax.errors import UserError

SIDE = 224  # of the pictures that the constants are made for


def apply(name, key, images, severity):
    """images float32 (B, H, W, 3) in [0, 1], severity 1 to 5 -> the same. Raises UserError for an unknown name or severity."""
    if name not in CORRUPTIONS:
        raise UserError(f"corruption {name!r}: expected one of {', '.join(CORRUPTIONS)}")
    if severity not in range(1, 6):
        raise UserError(f"severity={severity!r}: expected 1 to 5")
    keys = jax.random.split(key, len(images))
    return jnp.clip(jax.vmap(lambda k, x: CORRUPTIONS[name](k, x, severity - 1))(keys, images), 0.0, 1.0)


# --------------------------------------------------------------------------------------------------------------------------- noise
def gaussian_noise(key, x, level):
    return x + (0.08, 0.12, 0.18, 0.26, 0.38)[level] * jax.random.normal(key, x.shape)


def shot_noise(key, x, level):
    rate = (60.0, 25.0, 12.0, 5.0, 3.0)[level]
    return jax.random.poisson(key, x * rate).astype(jnp.float32) / rate


def impulse_noise(key, x, level):
    """Salt and pepper, half of each, channel by channel, as scikit-image's random_noise."""
    hit, salt = jax.random.uniform(key, (2, *x.shape))
    return jnp.where(hit < (0.03, 0.06, 0.09, 0.17, 0.27)[level], (salt < 0.5).astype(x.dtype), x)


# ---------------------------------------------------------------------------------------------------------------------------- blur
def defocus_blur(key, x, level):
    """A disk, its edge smoothed a little."""
    radius, smooth = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level]
    return _filtered(x, _disk(radius * x.shape[0] / SIDE, smooth))


def glass_blur(key, x, level):
    sigma, reach, passes = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    scale = x.shape[0] / SIDE
    x, reach = _gaussian(x, sigma * scale), max(1, round(reach * scale))
    rows, columns = jnp.meshgrid(jnp.arange(x.shape[0]), jnp.arange(x.shape[1]), indexing="ij")
    for k in jax.random.split(key, passes):
        down, across = jax.random.randint(k, (2, *x.shape[:2]), -reach, reach + 1)
        x = x[jnp.clip(rows + down, 0, x.shape[0] - 1), jnp.clip(columns + across, 0, x.shape[1] - 1)]
    return _gaussian(x, sigma * scale)


def motion_blur(key, x, level):
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    return _moved(x, radius, sigma, jax.random.uniform(key, (), minval=-45.0, maxval=45.0))


def zoom_blur(key, x, level):
    """The mean of the picture and of it at growing zooms."""
    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[level]
    zooms = np.arange(1, end, step)
    return (x + sum(_zoomed(x, zoom) for zoom in zooms)) / (len(zooms) + 1)


# ------------------------------------------------------------------------------------------------------------------------- weather
def snow(key, x, level):
    mean, std, zoom, least, radius, sigma, share = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]  # fmt: skip
    flakes, angle = jax.random.split(key)
    layer = _zoomed(mean + std * jax.random.normal(flakes, (*x.shape[:2], 1)), zoom)
    layer = jnp.clip(jnp.where(layer < least, 0.0, layer), 0.0, 1.0)
    layer = _moved(layer, radius, sigma, jax.random.uniform(angle, (), minval=-135.0, maxval=-45.0))
    white = jnp.maximum(x, photometric.luma(x)[..., None] * 1.5 + 0.5)
    return share * x + (1 - share) * white + layer + jnp.rot90(layer, 2)


def frost(key, x, level):
    """Ice crystals grown from the edges, drawn: thin bright veins of a plasma, bluish."""
    keep, add = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[level]
    ridges, veil = (plasma(k, x.shape[0], x.shape[1], 1.6) for k in jax.random.split(key))
    ice = jnp.clip(1.0 - 4.0 * jnp.abs(ridges - 0.5), 0.0, 1.0) * 0.7 + 0.3 * veil
    return keep * x + add * ice[..., None] * jnp.array([0.85, 0.95, 1.0])


def fog(key, x, level):
    amount, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[level]
    top = x.max()
    return (x + amount * plasma(key, x.shape[0], x.shape[1], decay)[..., None]) * top / (top + amount)


def brightness(key, x, level):
    """HSV's value raised; hue and saturation stay, so that the three channels grow by one factor."""
    value = x.max(-1, keepdims=True)
    raised = jnp.clip(value + (0.1, 0.2, 0.3, 0.4, 0.5)[level], 0.0, 1.0)
    return jnp.where(value > 0, x / jnp.where(value > 0, value, 1.0), 1.0) * raised


# ------------------------------------------------------------------------------------------------------------------------- digital
def contrast(key, x, level):
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + mean


def elastic_transform(key, x, level):
    """A random affine map of three points, then a smooth random displacement (Simard et al. 2003)."""
    height, width = x.shape[:2]
    shares = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))[level]
    alpha, sigma, affine = (share * height for share in shares)
    points, down, across = jax.random.split(key, 3)
    centre, third = jnp.array([height, width]) / 2.0, height // 3
    start = jnp.stack([centre + third, jnp.array([centre[0] + third, centre[1] - third]), centre - third])
    end = start + jax.random.uniform(points, (3, 2), minval=-affine, maxval=affine)
    matrix = jnp.linalg.solve(jnp.concatenate([end, jnp.ones((3, 1))], 1), start)  # where a pixel of the result comes from
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    shift = [alpha * _gaussian(jax.random.uniform(k, (height, width, 1), minval=-1.0, maxval=1.0), sigma)[..., 0] for k in (down, across)]
    place = jnp.stack([rows + shift[0], columns + shift[1], jnp.ones((height, width))], -1) @ matrix
    place = jnp.stack([_mirrored(place[..., 0], height), _mirrored(place[..., 1], width)])
    return jnp.stack([jax.scipy.ndimage.map_coordinates(x[..., c], place, order=1, mode="nearest") for c in range(3)], -1)


def pixelate(key, x, level):
    """Shrunk by the mean of boxes and enlarged the same way."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    small = [max(int(side * share), 1) for side in x.shape[:2]]
    down, across = (_boxes(a, b) for a, b in zip(small, x.shape[:2], strict=True))
    up, along = (_boxes(b, a) for a, b in zip(small, x.shape[:2], strict=True))
    return jnp.einsum("hi,wj,ijc->hwc", up @ down, along @ across, x)


def jpeg_compression(key, x, level):
    """8 x 8 cosine transforms of YCbCr, colours at half the size, divided by the standard's tables at this quality, rounded, and back."""
    quality = (25, 18, 15, 10, 7)[level]
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    tables = [np.clip(np.floor((table * scale + 50) / 100), 1, 255) for table in (LUMINANCE, CHROMINANCE)]
    height, width = x.shape[:2]
    x = jnp.pad(x, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="edge")
    y, cb, cr = jnp.moveaxis(jnp.round(x * 255.0) @ YCBCR.T, -1, 0)
    halves = [_quantised(c.reshape(c.shape[0] // 2, 2, c.shape[1] // 2, 2).mean((1, 3)), tables[1]) for c in (cb, cr)]
    cb, cr = (jax.image.resize(c, y.shape, "linear") for c in halves)
    out = jnp.stack([_quantised(y - 128.0, tables[0]) + 128.0, cb, cr], -1) @ np.linalg.inv(YCBCR).T
    return out[:height, :width] / 255.0


CORRUPTIONS = {
    f.__name__: f
    for f in (gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog, brightness,
              contrast, elastic_transform, pixelate, jpeg_compression)
}  # fmt: skip

YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]])
LUMINANCE = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92], [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip
CHROMINANCE = np.full((8, 8), 99)
CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]


# ------------------------------------------------------------------------------------------------------------------- what they share
def _filtered(x, kernel):
    """Each channel of (H, W, C) under a kernel (k, k), k odd, the picture mirrored at its edge."""
    reach = [k // 2 for k in kernel.shape]
    padded = jnp.pad(x, ((reach[0],) * 2, (reach[1],) * 2, (0, 0)), mode="reflect" if max(reach) < min(x.shape[:2]) else "edge")
    out = jax.lax.conv_general_dilated(
        jnp.moveaxis(padded, -1, 0)[:, None], jnp.asarray(kernel, x.dtype)[None, None], (1, 1), "VALID", precision="highest"
    )
    return jnp.moveaxis(out[:, 0], 0, -1)


def _gaussian(x, sigma):
    """A Gaussian blur of (H, W, C), cut at four deviations."""
    reach = max(int(4 * sigma + 0.5), 1)
    reach = min(reach, min(x.shape[:2]) - 1)
    line = np.exp(-np.square(np.arange(-reach, reach + 1)) / (2 * max(sigma, 1e-3) ** 2))
    line = line / line.sum()
    return _filtered(_filtered(x, line[:, None]), line[None])


def _disk(radius, smooth):
    """A disk of this radius, smoothed by a Gaussian of `smooth` pixels, of sum 1."""
    reach = int(np.ceil(radius)) + 2
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (rows**2 + columns**2 <= radius**2).astype(float)
    line = np.exp(-np.square(np.arange(-1, 2)) / (2 * smooth**2))
    for axis in (0, 1):
        disk = np.apply_along_axis(lambda v: np.convolve(v, line / line.sum(), "same"), axis, disk)
    return disk / disk.sum()


def _moved(x, radius, sigma, angle):
    """Motion blur as ImageMagick has it: half a Gaussian of `sigma` over 2 * radius + 1 places along a line of `angle` degrees."""
    scale = x.shape[0] / SIDE
    width = 2 * max(round(radius * scale), 1) + 1
    weights = np.exp(-np.square(np.arange(width)) / (2 * (sigma * scale) ** 2))
    radians = jnp.deg2rad(angle)
    steps = [jnp.ceil(np.arange(width) * part - 0.5).astype(jnp.int32) for part in (jnp.sin(radians), jnp.cos(radians))]
    rows, columns = jnp.arange(x.shape[0])[:, None], jnp.arange(x.shape[1])[None]
    seen = lambda i: x[jnp.clip(rows + steps[0][i], 0, x.shape[0] - 1), jnp.clip(columns + steps[1][i], 0, x.shape[1] - 1)]  # noqa: E731
    return sum(w * seen(i) for i, w in enumerate(weights / weights.sum()))


def _zoomed(x, zoom):
    """The centre of (H, W, C), enlarged `zoom` times to the same size, bilinear."""
    height, width = x.shape[:2]
    kept = [int(np.ceil(side / zoom)) for side in (height, width)]
    top, left = ((side - k) // 2 for side, k in zip((height, width), kept, strict=True))
    lines = [jnp.linspace(start, start + k - 1, side) for start, k, side in zip((top, left), kept, (height, width), strict=True)]
    place = jnp.stack(jnp.meshgrid(*lines, indexing="ij"))
    each = [jax.scipy.ndimage.map_coordinates(x[..., c], place, order=1, mode="nearest") for c in range(x.shape[-1])]
    return jnp.stack(each, -1)


def plasma(key, height, width, decay):
    """Plasma by midpoint displacement (Fournier et al. 1982), (height, width) from 0 to 1: `decay` divides the noise at each halving."""
    side = 1 << int(np.ceil(np.log2(max(height, width, 2))))
    field, amount = jnp.zeros((1, 1)), 100.0
    for k in jax.random.split(key, side.bit_length() - 1):
        field, amount = _finer(k, field, amount), amount / decay
    field = field[:height, :width] - field[:height, :width].min()
    return field / jnp.maximum(field.max(), 1e-12)


def _finer(key, field, amount):
    """A torus of n x n corners -> 2n x 2n: squares' middles, then diamonds', each the mean of four and uniform noise."""
    n = len(field)
    square, diamond, other = amount * jax.random.uniform(key, (3, n, n), minval=-1.0, maxval=1.0)
    right, down = jnp.roll(field, -1, 1), jnp.roll(field, -1, 0)
    middle = (field + right + down + jnp.roll(right, -1, 0)) / 4 + square
    above, left = jnp.roll(middle, 1, 0), jnp.roll(middle, 1, 1)
    top = (field + right + middle + above) / 4 + diamond  # between two corners of a row
    side = (field + down + middle + left) / 4 + other
    rows = jnp.stack([jnp.stack([field, top], -1).reshape(n, 2 * n), jnp.stack([side, middle], -1).reshape(n, 2 * n)], 1)
    return rows.reshape(2 * n, 2 * n)


def _mirrored(place, side):
    """Places outside [0, side - 1] thrown back at the edges (reflect_101)."""
    period = max(2 * (side - 1), 1)
    place = jnp.abs(place) % period
    return jnp.where(place > side - 1, period - place, place)


@functools.cache
def _boxes(out, size):
    """Matrix (out, size) of Pillow's BOX: the mean of the pixels whose centres lie in a box; enlarging, the nearest pixel."""
    scale = size / out
    distance = (np.arange(size) + 0.5 - (np.arange(out)[:, None] + 0.5) * scale) / max(scale, 1.0)
    inside = ((distance > -0.5) & (distance <= 0.5)).astype(float)
    return inside / inside.sum(1, keepdims=True)


def _quantised(channel, table):
    """(H, W), sides of 8n -> the same after the 8 x 8 cosine transform, divided by the table and rounded."""
    basis = np.cos((2 * np.arange(8) + 1) * np.arange(8)[:, None] * np.pi / 16) * np.where(np.arange(8) == 0, 1, 2**0.5)[:, None] / 8**0.5
    height, width = channel.shape
    blocks = channel.reshape(height // 8, 8, width // 8, 8)
    terms = jnp.einsum("ui,hiwj,vj->huwv", basis, blocks, basis)
    terms = jnp.round(terms / table[:, None]) * table[:, None]
    return jnp.einsum("ui,huwv,vj->hiwj", basis, terms, basis).reshape(height, width)
