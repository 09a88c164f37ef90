"""RandAugment and AutoAugment against Pillow, operation by operation, and against the laws that choose them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from ssljax.augment import policies

SIDE = 24


def affine(p, *matrix):
    return p.transform(p.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def enhance(cls):
    return lambda p, m: cls(p).enhance(1 + m)


PILLOW = {
    "Identity": lambda p, m: p,
    "ShearX": lambda p, m: affine(p, 1, m, 0, 0, 1, 0),
    "ShearY": lambda p, m: affine(p, 1, 0, 0, m, 1, 0),
    "TranslateX": lambda p, m: affine(p, 1, 0, -int(m), 0, 1, 0),
    "TranslateY": lambda p, m: affine(p, 1, 0, 0, 0, 1, -int(m)),
    "Rotate": lambda p, m: p.rotate(m, Image.Resampling.NEAREST),
    "Brightness": enhance(ImageEnhance.Brightness),
    "Color": enhance(ImageEnhance.Color),
    "Contrast": enhance(ImageEnhance.Contrast),
    "Sharpness": enhance(ImageEnhance.Sharpness),
    "Posterize": lambda p, m: ImageOps.posterize(p, int(m)),
    "Solarize": lambda p, m: ImageOps.solarize(p, m),
    "AutoContrast": lambda p, m: ImageOps.autocontrast(p),
    "Equalize": lambda p, m: ImageOps.equalize(p),
    "Invert": lambda p, m: ImageOps.invert(p),
}
SIGNED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}
# Magnitude 9 of 31 and of torchvision's spaces, for an image of 24 pixels, written out.
NINE = {
    "Identity": 0, "ShearX": 0.09, "ShearY": 0.09, "TranslateX": 3, "TranslateY": 3, "Rotate": 9, "Brightness": 0.27, "Color": 0.27,
    "Contrast": 0.27, "Sharpness": 0.27, "Posterize": 7, "Solarize": 178.5, "AutoContrast": 0, "Equalize": 0,
}  # fmt: skip


def same(got, expected):
    """Equal, but for a pixel on a border (float32 coordinates) and autocontrast's one level."""
    far = np.abs(got.astype(int) - np.asarray(expected, int)) > 1
    return far.mean(axis=(-3, -2, -1)) < 0.005


@pytest.fixture
def levels(picture):
    # Not all the levels, or autocontrast would do nothing.
    return (picture(SIDE, SIDE, 3) * 0.6 + 30).astype(np.uint8)


def test_rand_augment_draws_every_operation_equally_at_its_magnitude(levels):
    v = jnp.asarray(levels, jnp.float32)
    keys = jax.random.split(jax.random.key(0), 700)
    out = np.asarray(jax.jit(jax.vmap(lambda k: policies.rand_augment(k, v, 1, 9)))(keys))
    image = Image.fromarray(levels)
    candidates = {}
    for name, amount in NINE.items():
        for sign in (1, -1) if name in SIGNED else (1,):
            candidates[name, sign] = np.asarray(PILLOW[name](image, sign * amount))
    distance = np.stack([np.abs(out - c.astype(int)).mean((1, 2, 3)) for c in candidates.values()], 1)
    best = distance.argmin(1)
    assert all(same(o, list(candidates.values())[b]) for o, b in zip(out, best, strict=True))
    counts = np.bincount(best, minlength=len(candidates))
    for (name, sign), count in zip(candidates, counts, strict=True):
        expected = 700 / 14 / (2 if name in SIGNED else 1)
        assert abs(count - expected) < 4.5 * expected**0.5, (name, sign, count)


def test_two_operations_are_one_after_the_other(levels):
    v = jnp.asarray(levels, jnp.float32)
    keys = jax.random.split(jax.random.key(5), 40)
    out = np.asarray(jax.jit(jax.vmap(lambda k: policies.rand_augment(k, v, 2, 9)))(keys))
    image = Image.fromarray(levels)
    steps = [(n, s) for n in NINE for s in ((1, -1) if n in SIGNED else (1,))]
    chains = np.stack([
        np.asarray(PILLOW[b](PILLOW[a](image, s * NINE[a]), t * NINE[b])) for a, s in steps for b, t in steps
    ])  # fmt: skip
    for o in out:
        assert same(o[None], chains).any()


def test_auto_augment_is_a_pair_of_the_table(levels):
    v = jnp.asarray(levels, jnp.float32)
    keys = jax.random.split(jax.random.key(1), 120)
    out = np.asarray(jax.jit(jax.vmap(lambda k: policies.auto_augment(k, v)))(keys))
    shares = np.linspace(0, 1, 10)
    image = Image.fromarray(levels)
    chains = [levels]
    for pair in policies.IMAGENET:
        for happen in ((True, True), (True, False), (False, True)):
            for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
                now = image
                for (name, chance, m), here, sign in zip(pair, happen, signs, strict=True):
                    amount = {
                        "Posterize": 8 - np.round(m / 2.25), "Solarize": np.float32(255 * (1 - shares[m])), "Rotate": sign * 30 * shares[m],
                        "ShearX": sign * 0.3 * shares[m], "Color": sign * 0.9 * shares[m], "Contrast": sign * 0.9 * shares[m],
                        "Sharpness": sign * 0.9 * shares[m],
                    }.get(name, 0)  # fmt: skip
                    now = PILLOW[name](now, amount) if here and chance > 0 else now
                chains.append(np.asarray(now))
    chains = np.stack(chains)
    assert all(same(o[None], chains).any() for o in out)
    assert len(np.unique(out, axis=0)) > 20


def test_the_table_is_the_papers():
    # Cubuk et al. 2019, table 9, its columns counted and added up by hand: a typing error would show.
    flat = [op for pair in policies.IMAGENET for op in pair]
    assert len(policies.IMAGENET) == 25 and abs(sum(p for _, p, _ in flat) - 31.0) < 1e-9
    totals = {name: (sum(n == name for n, _, _ in flat), sum(m for n, _, m in flat if n == name)) for name, _, _ in flat}
    assert totals == {
        "Posterize": (5, 32), "Rotate": (6, 45), "Solarize": (7, 36), "AutoContrast": (2, 0), "Equalize": (17, 0), "Invert": (3, 0),
        "Color": (6, 18), "Contrast": (2, 16), "Sharpness": (1, 7), "ShearX": (1, 5),
    }  # fmt: skip


def test_timms_law_halves_the_operations_and_spreads_the_magnitude(levels):
    v = jnp.asarray(levels, jnp.float32)
    keys = jax.random.split(jax.random.key(2), 600)
    out = np.asarray(jax.jit(jax.vmap(lambda k: policies.rand_augment(k, v, 1, 9, law="timm")))(keys))
    kept = (out == levels).all((1, 2, 3)).sum()
    assert 240 < kept < 360
    amounts = policies.timm_amounts(9.0, 24, 24)  # of timm's *_level_to_arg, by hand
    expected = {"Rotate": 27, "Posterize": 1, "Solarize": 26, "SolarizeAdd": 99, "Color": 0.81, "ShearY": 0.27, "TranslateX": 9.72}
    np.testing.assert_allclose([float(amounts[k]) for k in expected], list(expected.values()), rtol=1e-6)
    assert len(amounts) == 15
    assert len(np.unique(out, axis=0)) > 150  # two of a kind differ in strength
