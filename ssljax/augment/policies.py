"""RandAugment and AutoAugment of one view, in levels 0..255: torchvision's operations, magnitudes and policy table; timm's as a second law.

Which operation a place gets is random, so under vmap a switch would compute all of them. Here a place computes one warp (with the matrix of
its operation), one blend (with the partner of its operation), and the cheap look-ups.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.augment import levels
from ssljax.errors import UserError

GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
ENHANCING = ("Brightness", "Color", "Contrast", "Sharpness")
SIGNED = GEOMETRIC + ENHANCING
LAWS = {"torchvision": 30, "timm": 10}  # the largest magnitude
# AutoAugment's ImageNet policies (Cubuk et al. 2019, table 9; torchvision): two of (operation, probability, magnitude of ten), 25 times.
IMAGENET = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)


def check(spec, law):
    """Raises UserError unless `spec` is (operations, magnitude) under a law that there is."""
    if law not in LAWS:
        raise UserError(f"config.augment: rand_augment_law={law!r}: expected {' or '.join(LAWS)}")
    whole = len(spec) == 2 and isinstance(spec[0], int) and isinstance(spec[1], (int, float))
    if not whole or spec[0] < 0 or not 0 <= spec[1] <= LAWS[law]:
        raise UserError(f"config.augment: rand_augment={spec}: expected (operations, magnitude 0 to {LAWS[law]}) under the law {law}")


def torchvision_amounts(magnitude, bins, height, width):
    """{operation: amount} of RandAugment (Cubuk et al. 2020) as torchvision spaces it: bin `magnitude` of `bins`, from 0."""
    share = magnitude / (bins - 1)
    pixels = 150 / 331
    return {
        "Identity": 0.0,
        "ShearX": 0.3 * share,
        "ShearY": 0.3 * share,
        "TranslateX": float(int(pixels * width * share)),
        "TranslateY": float(int(pixels * height * share)),
        "Rotate": 30.0 * share,
        "Brightness": 0.9 * share,
        "Color": 0.9 * share,
        "Contrast": 0.9 * share,
        "Sharpness": 0.9 * share,
        "Posterize": 8.0 - np.round(magnitude / ((bins - 1) / 4)),
        "Solarize": 255.0 * (1 - share),
        "AutoContrast": 0.0,
        "Equalize": 0.0,
    }


def timm_amounts(level, height, width):
    """{operation: amount} of timm's rand-mLEVEL-inc1, level 0 to 10, may be traced."""
    share = level / 10
    return {
        "AutoContrast": 0.0,
        "Equalize": 0.0,
        "Invert": 0.0,
        "Rotate": 30.0 * share,
        "Posterize": 4 - jnp.floor(share * 4),
        "Solarize": 256 - jnp.floor(share * 256),
        "SolarizeAdd": jnp.floor(share * 110),
        "Color": 0.9 * share,
        "Contrast": 0.9 * share,
        "Brightness": 0.9 * share,
        "Sharpness": 0.9 * share,
        "ShearX": 0.3 * share,
        "ShearY": 0.3 * share,
        "TranslateX": 0.45 * share * width,
        "TranslateY": 0.45 * share * height,
    }


def operate(v, names, which, amount, *, fill=0.0, interpolation="nearest"):
    """Operation `names[which]` with `amount` (both traced, the amount signed) on levels float32 (H, W, 3) -> the same.

    What is not in `names` is not compiled. Enhancing operations take 1 + amount for their factor.
    """
    height, width, _ = v.shape

    def pick(choices, default):
        out = default
        for name, value in choices.items():
            if name in names:
                out = jnp.where(which == names.index(name), value, out)
        return out

    def among(group):
        return jnp.isin(which, np.array([names.index(name) for name in group if name in names], np.int32))

    out = v
    if set(ENHANCING) & set(names):
        partners = {
            "Brightness": lambda: 0.0,
            "Contrast": lambda: levels.mean_luma(v),
            "Color": lambda: levels.luma(v)[..., None],
            "Sharpness": lambda: levels.smooth(v),
        }
        other = pick({name: make() for name, make in partners.items() if name in names}, jnp.zeros_like(v))
        out = jnp.where(among(ENHANCING), levels.blend(other, v, 1 + amount), out)
    looked_up = {
        "Posterize": lambda: levels.posterize(v, amount),
        "Solarize": lambda: levels.solarize(v, amount),
        "SolarizeAdd": lambda: levels.solarize_add(v, amount),
        "AutoContrast": lambda: levels.autocontrast(v),
        "Equalize": lambda: levels.equalize(v),
        "Invert": lambda: levels.invert(v),
    }
    out = pick({name: make() for name, make in looked_up.items() if name in names}, out)
    if set(GEOMETRIC) & set(names):
        matrices = {
            "ShearX": levels.shear_x(amount),
            "ShearY": levels.shear_y(amount),
            "TranslateX": levels.translate(amount, 0),
            "TranslateY": levels.translate(0, amount),
            "Rotate": levels.rotate(amount, height, width),
        }
        matrix = pick(matrices, levels.translate(0, 0))
        out = jnp.where(among(GEOMETRIC), levels.affine(v, matrix, fill, interpolation), out)
    return out


def _signed(key, amount, names, which):
    signed = jnp.isin(which, np.array([i for i, name in enumerate(names) if name in SIGNED], np.int32))
    return jnp.where(signed & jax.random.bernoulli(key), -amount, amount)


def rand_augment(key, v, operations, magnitude, *, law="torchvision"):
    """RandAugment(N=operations, M=magnitude) of levels float32 (H, W, 3).

    law "torchvision": 14 operations, 31 magnitudes from 0 to 30, nearest, black outside. law "timm": rand-mM-nN-mstd0.5-inc1, 15
    operations each with probability one half, magnitude N(M, 0.5) cut to [0, 10], bilinear, grey outside. timm warps bicubically or
    bilinearly; here always bilinearly.
    """
    height, width, _ = v.shape
    for k in jax.random.split(key, operations):
        which_key, sign_key, chance_key, level_key = jax.random.split(k, 4)
        if law == "torchvision":
            amounts, warp = torchvision_amounts(magnitude, 31, height, width), {}
        else:
            level = jnp.clip(magnitude + 0.5 * jax.random.normal(level_key), 0, 10)
            amounts, warp = timm_amounts(level, height, width), dict(fill=128.0, interpolation="bilinear")
        names = tuple(amounts)
        which = jax.random.randint(which_key, (), 0, len(names))
        amount = _signed(sign_key, jnp.stack([jnp.float32(a) for a in amounts.values()])[which], names, which)
        out = operate(v, names, which, amount, **warp)
        v = out if law == "torchvision" else jnp.where(jax.random.bernoulli(chance_key), out, v)
    return v


def auto_augment(key, v):
    """AutoAugment (Cubuk et al. 2019) with the ImageNet policy of levels float32 (H, W, 3): one of 25 pairs of operations, each by chance.

    As torchvision: ten magnitudes, nearest, black outside.
    """
    height, width, _ = v.shape
    names = tuple(sorted({name for pair in IMAGENET for name, _, _ in pair}))
    amounts = [torchvision_amounts(m, 10, height, width) | {"Invert": 0.0} for m in range(10)]
    table = np.array([[[names.index(n), p, amounts[m][n]] for n, p, m in pair] for pair in IMAGENET], np.float32)  # (25, 2, 3)
    policy_key, *keys = jax.random.split(key, 3)
    pair = jnp.asarray(table)[jax.random.randint(policy_key, (), 0, len(IMAGENET))]
    for (which, chance, amount), k in zip(pair, keys, strict=True):
        sign_key, chance_key = jax.random.split(k)
        which = which.astype(jnp.int32)
        out = operate(v, names, which, _signed(sign_key, amount, names, which))
        v = jnp.where(jax.random.uniform(chance_key) < chance, out, v)
    return v
