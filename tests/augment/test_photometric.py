"""Colour and blur against definitions of their own in float64: the standard library's HSV, scipy's Gaussian, a loop over orders."""

import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import correlate1d

from ssljax.augment import Group, photometric

pytestmark = pytest.mark.quick

WEIGHTS = np.array([0.299, 0.587, 0.114])


def turn_hue(x, turn):
    """HSV and back by the standard library, pixel by pixel."""
    flat = [colorsys.rgb_to_hsv(*pixel) for pixel in x.reshape(-1, 3)]
    return np.array([colorsys.hsv_to_rgb((h + turn) % 1.0, s, v) for h, s, v in flat]).reshape(x.shape)


DEFINITIONS = {
    "brightness": lambda x, f: np.clip(f * x, 0, 1),
    "contrast": lambda x, f: np.clip(f * x + (1 - f) * (x @ WEIGHTS).mean(), 0, 1),
    "saturation": lambda x, f: np.clip(f * x + (1 - f) * (x @ WEIGHTS)[..., None], 0, 1),
    "hue": turn_hue,
}


@pytest.mark.parametrize("name, amounts", [*[(n, (0.0, 0.4, 1.0, 1.8)) for n in photometric.JITTER[:3]], ("hue", (-0.5, -0.1, 0.0, 0.3))])
def test_an_operation_is_its_definition(name, amounts, picture):
    x = np.float64(picture(12, 12, 1)) / 255
    x[0, :4] = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0]]  # where HSV divides by nothing
    for amount in amounts:
        got = getattr(photometric, name)(jnp.asarray(x, jnp.float32), amount)
        np.testing.assert_allclose(got, DEFINITIONS[name](x, amount), atol=2e-6)


def test_jitter_applies_each_operation_once_in_every_order_equally_often(picture):
    x = np.float64(picture(3, 3, 4)) / 255
    strengths = dict(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.4)
    keys = jax.random.split(jax.random.key(0), 600)
    got = np.asarray(jax.jit(jax.vmap(lambda k: photometric.jitter(k, jnp.asarray(x, jnp.float32), strengths, True)))(keys))
    uniform = np.asarray(jax.vmap(lambda k: jax.random.uniform(jax.random.split(k, 3)[2], (4,)))(keys), np.float64)
    orders = list(itertools.permutations(photometric.JITTER))
    seen = np.zeros(len(orders))
    for value, u in zip(got, uniform, strict=True):
        factors = dict(zip(photometric.JITTER, [*(0.2 + 1.6 * u[:3]), 0.4 * (2 * u[3] - 1)], strict=True))
        errors = []
        for order in orders:
            expected = x
            for name in order:
                expected = DEFINITIONS[name](expected, factors[name])
            errors.append(np.abs(value - expected).max())
        errors = np.array(errors)
        assert errors.min() < 5e-6
        seen += (errors < 5e-6) / (errors < 5e-6).sum()  # where nothing clips, some orders are the same
    assert (np.abs(seen - 25) < 20).all(), seen
    where = {name: np.array([order.index(name) for order in orders]) for name in photometric.JITTER}
    for name in photometric.JITTER:
        assert abs((seen * where[name]).sum() / 600 - 1.5) < 0.2, name


@pytest.mark.parametrize("asked", [dict(brightness=0.5), dict(contrast=0.5, brightness=0.5), dict(hue=0.5), dict(saturation=0.5)])
def test_jitter_of_some_operations_and_of_none(asked, picture):
    x = jnp.asarray(picture(6, 6, 2) / 255, jnp.float32)
    keys = jax.random.split(jax.random.key(1), 8)
    jitter = jax.jit(jax.vmap(lambda k, on: photometric.jitter(k, x, asked, on), in_axes=(0, None)))
    np.testing.assert_allclose(jitter(keys, False), np.stack([x] * 8), atol=1e-6)
    for key, got in zip(keys, np.asarray(jitter(keys, True)), strict=True):
        u = np.float64(jax.random.uniform(jax.random.split(key, 3)[2], (4,)))
        amounts = {n: 0.5 * (2 * v - 1) + (n != "hue") for n, v in zip(photometric.JITTER, u, strict=True)}
        candidates = []
        for order in itertools.permutations(asked):
            expected = np.float64(x)
            for name in order:
                expected = DEFINITIONS[name](expected, amounts[name])
            candidates.append(np.abs(got - expected).max())
        assert min(candidates) < 5e-6


@pytest.mark.parametrize("size, sigma, radius", [(32, 1.3, 4), (24, 0.2, 1), (16, 5.0, 11)])
def test_blur_is_torchvisions_kernel_with_a_mirrored_border(size, sigma, radius):
    x = np.random.default_rng(0).random((size, size, 3))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    expected = correlate1d(correlate1d(x, kernel, axis=0, mode="mirror"), kernel, axis=1, mode="mirror")
    np.testing.assert_allclose(photometric.blur(jnp.asarray(x, jnp.float32), sigma, radius), expected, atol=2e-6)


def test_sigma_and_kernel_are_those_of_a_224_pixel_view(picture):
    x = picture(16, 16, 3) / 255
    group = Group(count=1, size=16, jitter=0.0, blur=(1.0,), sigma=(28.0, 28.0), kernel=99.0)  # 2 pixels, 3.5 to either side
    chance = {name: float(name == "blur") for name in photometric.CHANCES}
    got = photometric.apply(jax.random.key(0), jnp.asarray(x, jnp.float32), group, chance)
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / 2.0) ** 2)
    expected = correlate1d(correlate1d(x, kernel / kernel.sum(), axis=0, mode="mirror"), kernel / kernel.sum(), axis=1, mode="mirror")
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_grey_is_luma():
    x = np.random.default_rng(1).random((6, 6, 3))
    chance = {name: float(name == "grey") for name in photometric.CHANCES}
    got = photometric.apply(jax.random.key(0), jnp.asarray(x, jnp.float32), Group(count=1, size=6, grey=1.0), chance)
    np.testing.assert_allclose(got, np.repeat((x @ WEIGHTS)[..., None], 3, -1), atol=1e-6)


@pytest.mark.parametrize("name", ["posterize", "equalize", "autocontrast", "invert", "sharpen"])
def test_probabilities_of_operations_on_levels(name, picture):
    from PIL import Image, ImageEnhance, ImageOps

    pillow = {
        "posterize": lambda p: ImageOps.posterize(p, 3),
        "equalize": ImageOps.equalize,
        "autocontrast": ImageOps.autocontrast,
        "invert": ImageOps.invert,
        "sharpen": lambda p: ImageEnhance.Sharpness(p).enhance(1.5),
    }
    levels = picture(16, 16, 7)
    x = jnp.asarray(levels / 255, jnp.float32)
    group = Group(count=1, size=16, posterize_bits=3, sharpen_factor=1.5, **{name: 0.5})
    chance = {k: 0.5 * (k == name) for k in photometric.CHANCES}
    keys = jax.random.split(jax.random.key(2), 200)
    out = np.asarray(jax.jit(jax.vmap(lambda k: photometric.apply(k, x, group, chance)))(keys)) * 255
    expected = np.float64(pillow[name](Image.fromarray(levels)))
    changed = (np.abs(out - expected) <= 1.001).all((1, 2, 3))
    assert ((np.abs(out - levels) < 1e-3).all((1, 2, 3)) != changed).all()
    assert 70 < changed.sum() < 130
