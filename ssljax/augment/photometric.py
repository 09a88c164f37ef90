"""Colour: jitter, greyscale, blur, solarize, of one view in [0, 1]. Ranges as SimCLR (Chen et al. 2020, appendix A) and BYOL state them."""

import jax
import jax.numpy as jnp
import numpy as np

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601 luma, as Pillow and torchvision
# RGB <-> YIQ: a turn of the IQ plane is a turn of hue at constant luma.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float32)


def colour_matrix(saturation, turn, grey):
    """3x3 matrix M with pixels @ M.T: saturation factor, hue turn (1 is a whole circle) and greyscale (0 or 1) in one."""
    to_grey = np.tile(GREY, (3, 1))
    saturate = saturation * jnp.eye(3) + (1 - saturation) * to_grey
    cos, sin = jnp.cos(2 * jnp.pi * turn), jnp.sin(2 * jnp.pi * turn)
    rotate = jnp.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    hue = np.linalg.inv(_YIQ) @ rotate @ _YIQ
    matrix = hue @ saturate
    return jnp.where(grey, to_grey @ matrix, matrix)


def blur_matrix(size, sigma):
    """(size, size) rows of a Gaussian of `sigma` pixels, renormalised at the borders."""
    i = jnp.arange(size)
    weights = jnp.exp(-0.5 * jnp.square((i[:, None] - i[None, :]) / sigma))
    return weights / weights.sum(axis=1, keepdims=True)


def apply(key, x, group, chance):
    """x float32 (S, S, 3) in [0, 1] -> the same, augmented. chance: this view's probabilities of jitter, grey, blur, solarize.

    What the group does not ask for is not compiled.
    """
    r = jax.random.split(key, 9)
    jitter = jax.random.uniform(r[0]) < chance["jitter"]

    def factor(k, strength):
        return jnp.where(jitter, jax.random.uniform(k, minval=max(0.0, 1 - strength), maxval=1 + strength), 1.0)

    if group.brightness:
        x = jnp.clip(x * factor(r[1], group.brightness), 0, 1)
    if group.contrast:
        mean = (x @ GREY).mean()
        x = jnp.clip(mean + (x - mean) * factor(r[2], group.contrast), 0, 1)
    if group.saturation or group.hue or group.grey:
        turn = jnp.where(jitter, jax.random.uniform(r[4], minval=-group.hue, maxval=group.hue), 0.0)
        grey = jax.random.uniform(r[5]) < chance["grey"]
        x = jnp.clip(x @ colour_matrix(factor(r[3], group.saturation), turn, grey).T, 0, 1)
    if any(group.blur):
        sigma = jax.random.uniform(r[6], minval=group.sigma[0], maxval=group.sigma[1]) * x.shape[0] / 224
        blur = blur_matrix(x.shape[0], jnp.where(jax.random.uniform(r[7]) < chance["blur"], sigma, 1e-3))
        x = jnp.einsum("yh,hwc,xw->yxc", blur, x, blur, precision="highest")
    if any(group.solarize):
        x = jnp.where((jax.random.uniform(r[8]) < chance["solarize"]) & (x >= 0.5), 1 - x, x)
    return x
