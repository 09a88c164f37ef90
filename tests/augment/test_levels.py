"""Operations on levels against Pillow itself: equal, level by level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from ssljax.augment import levels

pytestmark = pytest.mark.quick

SIZE = (40, 32)
# Equal to the last bit of what is cut to a level: for that, programs are made as a user's are, not as the suite's other ones.
AS_USERS = {"xla_cpu_use_fusion_emitters": True}


def pictures():
    """uint8 (7, 40, 32, 3): smooth ones, noise, two levels, one level, few dark levels."""
    rng = np.random.default_rng(0)
    smooth = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(SIZE[::-1], Image.Resampling.BICUBIC))
        for _ in range(3)
    ]
    noise = rng.integers(0, 256, (*SIZE, 3))
    two, one, dark = np.where(noise < 250, 10, 200), np.full((*SIZE, 3), 77), noise // 20 + 3
    return np.stack([*smooth, noise, two, one, dark]).astype(np.uint8)


PICTURES = pictures()


def run(function, *arguments):
    """`function` of every picture, vmapped under jit, as uint8."""
    out = jax.jit(jax.vmap(lambda v: function(v, *arguments)), compiler_options=AS_USERS)(jnp.asarray(PICTURES, jnp.float32))
    assert (np.asarray(out) == np.round(out)).all()
    return np.asarray(out).astype(np.uint8)


def pillow(function):
    return np.stack([np.asarray(function(Image.fromarray(p))) for p in PICTURES])


def test_equalize_is_pillows():
    np.testing.assert_array_equal(run(levels.equalize), pillow(ImageOps.equalize))


def test_equalize_of_few_pixels_is_clipped_as_pillow_clips_it():
    row = np.repeat(np.uint8([10, 20, 30]), [300, 210, 2])[None, :, None].repeat(3, 2)  # a step of one: the table passes 255
    got = jax.jit(levels.equalize)(jnp.asarray(row, jnp.float32))
    np.testing.assert_array_equal(np.asarray(got), np.asarray(ImageOps.equalize(Image.fromarray(row))))


def test_autocontrast_is_pillows_but_for_its_float_artefacts():
    got, expected = run(levels.autocontrast).astype(int), pillow(ImageOps.autocontrast).astype(int)
    assert np.abs(got - expected).max() <= 1 and (got != expected).mean() < 0.01


@pytest.mark.parametrize("bits", [1, 4, 7, 8])
def test_posterize_is_pillows(bits):
    np.testing.assert_array_equal(run(levels.posterize, jnp.float32(bits)), pillow(lambda p: ImageOps.posterize(p, bits)))


@pytest.mark.parametrize("threshold", [0, 100, 178.5, 256])
def test_solarize_and_invert_are_pillows(threshold):
    np.testing.assert_array_equal(run(levels.solarize, threshold), pillow(lambda p: ImageOps.solarize(p, threshold)))
    np.testing.assert_array_equal(run(levels.invert), pillow(ImageOps.invert))


def test_solarize_add_brightens_the_dark_half():
    v = PICTURES.astype(int)
    np.testing.assert_array_equal(run(levels.solarize_add, 99.0), np.where(v < 128, np.minimum(v + 99, 255), v))


@pytest.mark.parametrize(
    "function, enhancer",
    [
        (levels.brightness, ImageEnhance.Brightness),
        (levels.contrast, ImageEnhance.Contrast),
        (levels.colour, ImageEnhance.Color),
        (levels.sharpness, ImageEnhance.Sharpness),
    ],
)
def test_enhancements_are_pillows(function, enhancer):
    traced = jax.jit(jax.vmap(function, in_axes=(0, None)), compiler_options=AS_USERS)
    for factor in (0.0, 0.1, 0.73, 1.0, 1.27, 1.9):
        got = np.asarray(traced(jnp.asarray(PICTURES, jnp.float32), factor))
        np.testing.assert_array_equal(got, pillow(lambda p, f=factor: enhancer(p).enhance(f)), err_msg=str(factor))


MATRICES = {
    "shear_x": (lambda: levels.shear_x(0.27), lambda p, **how: p.transform(p.size, Image.Transform.AFFINE, (1, 0.27, 0, 0, 1, 0), **how)),
    "shear_y": (lambda: levels.shear_y(-0.09), lambda p, **how: p.transform(p.size, Image.Transform.AFFINE, (1, 0, 0, -0.09, 1, 0), **how)),
    "translate": (
        lambda: levels.translate(5, -3), lambda p, **how: p.transform(p.size, Image.Transform.AFFINE, (1, 0, -5, 0, 1, 3), **how)
    ),
    "rotate": (lambda: levels.rotate(13.0, *SIZE), lambda p, **how: p.rotate(13.0, **how)),
    "nothing": (lambda: levels.rotate(0.0, *SIZE), lambda p, **how: p),
}  # fmt: skip


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_warps_are_pillows(interpolation):
    traced = jax.jit(jax.vmap(lambda v, m: levels.affine(v, m, 128.0, interpolation), in_axes=(0, None)), compiler_options=AS_USERS)
    how = dict(resample=Image.Resampling[interpolation.upper()], fillcolor=(128, 128, 128))
    for name, (matrix, transform) in MATRICES.items():
        got = np.asarray(traced(jnp.asarray(PICTURES, jnp.float32), matrix()), int)
        expected = pillow(lambda p, t=transform: t(p, **how)).astype(int)
        other = np.abs(got - expected)
        print(interpolation, name, (other > 0).mean(), other.max())
        assert (other > 0).mean() < 0.002 and (interpolation == "nearest" or other.max() <= 1), name
