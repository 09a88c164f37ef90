"""Colour, blur and solarize of one view in [0, 1]: the definitions of torchvision on float images, the laws of SimCLR and BYOL.

Every function takes float32 (S, S, 3) and gives the same shape; factors, turns and probabilities may be traced.
What is defined on 256 levels (posterize, equalize, autocontrast, sharpness) is in `levels.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.augment import levels, policies

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601 luma, as Pillow
JITTER = ("brightness", "contrast", "saturation", "hue")
# Probabilities, one or one a view, of what `apply` does; the names are Group's.
CHANCES = ("jitter", "grey", "blur", "solarize", "posterize", "equalize", "autocontrast", "invert", "sharpen")


def luma(x):
    """(..., 3) -> (...). A sum, not a product of matrices: those drop to bfloat16 on accelerators."""
    return _luma(_planes(x))


def _planes(x):
    return x[..., 0], x[..., 1], x[..., 2]


def _luma(planes):
    return planes[0] * GREY[0] + planes[1] * GREY[1] + planes[2] * GREY[2]


def blend(other, x, factor):
    """other + factor * (x - other), clipped to [0, 1]: brightness, contrast and saturation are this with 0, mean luma and luma."""
    return jnp.clip(other + factor * (x - other), 0, 1)


def brightness(x, factor):
    return blend(0.0, x, factor)


def contrast(x, factor):
    return blend(luma(x).mean(), x, factor)


def saturation(x, factor):
    return blend(luma(x)[..., None], x, factor)


def hue(x, turn):
    """Turns the hue of HSV by `turn` of a circle: torchvision's adjust_hue, without leaving RGB.

    A channel of HSV's hexagon is top - chroma * clip(min(k, 4 - k), 0, 1) with k = (n + sixths of hue) mod 6, n = 5, 3, 1.
    """
    return jnp.stack(_turned(_planes(x), turn), axis=-1)


def _turned(planes, turn):
    r, g, b = planes
    top = jnp.maximum(jnp.maximum(r, g), b)
    chroma = top - jnp.minimum(jnp.minimum(r, g), b)
    divisor = jnp.where(chroma == 0, 1.0, chroma)  # a grey pixel has no hue, and stays
    sixths = jnp.where(top == r, (g - b) / divisor, jnp.where(top == g, 2 + (b - r) / divisor, 4 + (r - g) / divisor))
    sixths = sixths + 6 * turn

    def channel(n):
        k = sixths + n
        k = k - 6 * jnp.floor(k / 6)
        return top - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return channel(5), channel(3), channel(1)


def jitter(key, x, strengths, on):
    """torchvision's ColorJitter: each operation once, in an order drawn uniformly. strengths: {name of JITTER: static float}.

    on: bool; False leaves x as it is. lax.switch under vmap would compute every operation at every place. Here a place computes one
    blend, with the partner that its turn asks for, and hue falls in one of the gaps between them. The channels stay apart till the end:
    put together and taken apart at each place, they would go to memory and back three times as often on a TPU.
    """
    order_key, gap_key, factor_key = jax.random.split(key, 3)
    uniform = jax.random.uniform(factor_key, (4,))
    asked = [name for name in JITTER[:3] if strengths.get(name)]
    factors = []
    for name in asked:
        low, high = max(0.0, 1 - strengths[name]), 1 + strengths[name]
        factors.append(jnp.where(on, low + (high - low) * uniform[JITTER.index(name)], 1.0))
    order = jnp.argsort(jax.random.uniform(order_key, (len(asked),)))
    # A uniform order of the blends and a uniform gap for hue make a uniform order of them all.
    gap = jax.random.randint(gap_key, (), 0, len(asked) + 1)
    turn = strengths.get("hue", 0) * (2 * uniform[3] - 1)
    planes = _planes(x)
    for place in range(len(asked) + 1):
        if strengths.get("hue"):
            planes = [jnp.where(on & (gap == place), new, old) for new, old in zip(_turned(planes, turn), planes, strict=True)]
        if place < len(asked):
            which, grey = order[place], _luma(planes)
            partners = {"brightness": jnp.zeros_like(grey), "contrast": jnp.full_like(grey, grey.mean()), "saturation": grey}
            other = jax.lax.select_n(which, *(partners[name] for name in asked))
            planes = [blend(other, plane, jnp.stack(factors)[which]) for plane in planes]
    return jnp.stack(planes, axis=-1)


def blur_matrix(size, sigma, radius):
    """(size, size) rows of torchvision's gaussian_blur: 2 * radius + 1 taps that sum to 1, the image mirrored at its border.

    sigma in pixels, may be traced. Needs radius < size.
    """
    i = jnp.arange(size)
    row, column = i[:, None], i[None, :]

    def tap(distance):
        return jnp.where(jnp.abs(distance) <= radius, jnp.exp(-0.5 * jnp.square(distance / sigma)), 0.0)

    taps = tap(jnp.arange(-radius, radius + 1)).sum()
    # Pixel j is seen at j, and as the mirrored pixels -j and 2 (size - 1) - j; the pixels of the border themselves are not repeated.
    left = jnp.where(column > 0, tap(-column - row), 0.0)
    right = jnp.where(column < size - 1, tap(2 * (size - 1) - column - row), 0.0)
    return (tap(column - row) + left + right) / taps


def blur(x, sigma, radius):
    """Gaussian blur as two matrix products."""
    matrix = blur_matrix(x.shape[0], sigma, radius)
    return jnp.einsum("yh,hwc,xw->yxc", matrix, x, matrix, precision="highest")


def solarize(x, threshold=0.5):
    """Inverts the values from `threshold` on."""
    return jnp.where(x >= threshold, 1 - x, x)


def apply(key, x, group, chance):
    """x float32 (S, S, 3) in [0, 1] -> the same, augmented. chance: this view's probability of each of CHANCES.

    In this order: RandAugment, AutoAugment, jitter, grey, blur, solarize, posterize, equalize, autocontrast, invert, sharpen.
    What the group does not ask for is not compiled.
    """
    r = jax.random.split(key, 16)

    def happens(i, name):
        return jax.random.uniform(r[i]) < chance[name]

    if group.rand_augment[0]:
        x = levels.on_levels(lambda v: policies.rand_augment(r[9], v, *group.rand_augment, law=group.rand_augment_law), x)
    if group.auto_augment:
        x = levels.on_levels(lambda v: policies.auto_augment(r[10], v), x)
    strengths = {name: getattr(group, name) for name in JITTER if getattr(group, name)}
    if strengths and group.jitter:
        x = jitter(r[1], x, strengths, happens(0, "jitter"))
    if group.grey:
        x = jnp.where(happens(5, "grey"), luma(x)[..., None], x)
    if any(group.blur):
        pixel = x.shape[0] / 224
        sigma = pixel * jax.random.uniform(r[6], minval=group.sigma[0], maxval=group.sigma[1])
        radius = min(max(1, round((group.kernel - 1) / 2 * pixel)), x.shape[0] - 1)
        x = blur(x, jnp.where(happens(7, "blur"), sigma, 1e-3), radius)
    if any(group.solarize):
        x = jnp.where(happens(8, "solarize"), solarize(x), x)
    on_levels = {
        "posterize": lambda v: levels.posterize(v, group.posterize_bits),
        "equalize": levels.equalize,
        "autocontrast": levels.autocontrast,
        "invert": levels.invert,
        "sharpen": lambda v: levels.sharpness(v, group.sharpen_factor),
    }
    for i, (name, function) in enumerate(on_levels.items(), start=11):
        if any(getattr(group, name)):
            x = jnp.where(happens(i, name), levels.on_levels(function, x), x)
    return x
