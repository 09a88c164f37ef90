"""CIE Lab of sRGB (D65, 2 degrees), and the grid of colours that colourisation predicts."""

import jax.numpy as jnp
import numpy as np

RGB_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]], np.float32)
WHITE = np.array([0.95047, 1.0, 1.08883], np.float32)


def rgb_to_lab(images):
    """float (..., 3) in [0, 1] -> (..., 3): L in [0, 100], a and b about [-110, 110]. As scikit-image's rgb2lab."""
    x = jnp.clip(images.astype(jnp.float32), 0.0, 1.0)
    linear = jnp.where(x > 0.04045, ((jnp.maximum(x, 0.04045) + 0.055) / 1.055) ** 2.4, x / 12.92)
    xyz = jnp.einsum("...c,dc->...d", linear, RGB_TO_XYZ, precision="highest") / WHITE
    f = jnp.where(xyz > 0.008856, jnp.cbrt(jnp.maximum(xyz, 0.008856)), 7.787 * xyz + 16.0 / 116.0)
    return jnp.stack([116.0 * f[..., 1] - 16.0, 500.0 * (f[..., 0] - f[..., 1]), 200.0 * (f[..., 1] - f[..., 2])], axis=-1)


def colour_bins(step=10):
    """Centres (K, 2) of the bins of a grid over (a, b) that sRGB reaches (Zhang et al. 2016, section 2.1: 313 of side 10). float32."""
    levels = np.linspace(0, 1, 33)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    linear = np.where(cube > 0.04045, ((cube + 0.055) / 1.055) ** 2.4, cube / 12.92)
    xyz = linear @ RGB_TO_XYZ.T.astype(np.float64) / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16.0 / 116.0)
    ab = np.stack([500.0 * (f[:, 0] - f[:, 1]), 200.0 * (f[:, 1] - f[:, 2])], axis=-1)
    return np.unique(np.round(ab / step), axis=0).astype(np.float32) * step


def nearest_bin(ab, centres):
    """(..., 2) -> int32 (...): index of the nearest centre."""
    distance = jnp.square(ab[..., None, :] - centres).sum(-1)
    return distance.argmin(-1).astype(jnp.int32)
