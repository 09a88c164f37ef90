"""Device augmentation against independent definitions in numpy, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ssljax import augment
from ssljax.augment import Group, geometry, photometric

pytestmark = pytest.mark.quick


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("box", [(0, 0, 40, 56), (8, 4, 24, 40), (3, 5, 16, 16)])
def test_crop_and_resize_is_pillows_bilinear(box):
    top, left, height, width = box
    image = picture(40, 56)
    cut = image[top : top + height, left : left + width]
    # In Pillow's mode of one float channel nothing is rounded on the way.
    channels = [Image.fromarray(np.float32(cut[..., c])).resize((24, 24), Image.Resampling.BILINEAR) for c in range(3)]
    expected = np.stack([np.asarray(c, np.float64) for c in channels], -1)
    by_rows = geometry.resize_matrix(0.0, float(height), height, 24)
    by_columns = geometry.resize_matrix(0.0, float(width), width, 24)
    got = np.einsum("yh,hwc,xw->yxc", np.float64(by_rows), cut.astype(np.float64), np.float64(by_columns))
    assert np.abs(got - expected).max() <= 1e-3


def test_crop_boxes_follow_the_law_of_area_and_ratio():
    keys = jax.random.split(jax.random.key(0), 4000)
    top, left, h, w = jax.vmap(lambda k: jnp.stack(geometry.crop_box(k, 64, 64, (0.1, 0.5), (3 / 4, 4 / 3))))(keys).T
    area, ratio = np.asarray(h * w) / 64**2, np.asarray(w / h)
    assert 0.1 - 1e-6 <= area.min() and area.max() <= 0.5 + 1e-6
    assert 0.75 - 1e-6 <= ratio.min() and ratio.max() <= 4 / 3 + 1e-5
    assert abs(area.mean() - 0.3) < 0.01  # uniform
    assert abs(np.log(ratio).mean()) < 0.01 and abs(np.log(ratio).std() - np.log(4 / 3) / np.sqrt(3)) < 0.01  # log-uniform
    assert (np.asarray(top) >= 0).all() and (np.asarray(top + h) <= 64 + 1e-4).all()
    assert abs(np.mean(np.asarray(left) / np.maximum(64 - np.asarray(w), 1e-6)) - 0.5) < 0.02


def test_flip_is_a_mirror_and_half_are_flipped():
    image = jnp.asarray(picture(16, 16) / 255.0, jnp.float32)
    whole = dict(count=1, size=16, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    never = geometry.random_resized_crop(jax.random.key(3), image, Group(**whole, flip=0.0))
    always = geometry.random_resized_crop(jax.random.key(3), image, Group(**whole, flip=1.0))
    np.testing.assert_allclose(never, image, atol=1e-5)
    np.testing.assert_allclose(always, image[:, ::-1], atol=1e-5)


def test_the_colour_matrix_is_saturation_hue_and_grey():
    x = np.float64(picture(8, 8, 1)) / 255
    luma = x @ np.array([0.299, 0.587, 0.114])
    saturated = np.asarray(x @ np.float64(photometric.colour_matrix(0.3, 0.0, False)).T)
    np.testing.assert_allclose(saturated, 0.3 * x + 0.7 * luma[..., None], atol=1e-4)  # Pillow's ImageEnhance.Color
    grey = x @ np.float64(photometric.colour_matrix(1.0, 0.2, True)).T
    np.testing.assert_allclose(grey, np.repeat(luma[..., None], 3, -1), atol=2e-3)  # whatever the hue: it keeps luma
    turned = x @ np.float64(photometric.colour_matrix(1.0, 0.25, False)).T
    np.testing.assert_allclose(turned @ np.array([0.299, 0.587, 0.114]), luma, atol=2e-3)
    back = turned @ np.float64(photometric.colour_matrix(1.0, -0.25, False)).T
    np.testing.assert_allclose(back, x, atol=1e-4)


def test_blur_is_a_gaussian():
    from scipy.ndimage import gaussian_filter1d

    x = np.random.default_rng(0).random((32, 5))
    got = np.float64(photometric.blur_matrix(32, 1.3)) @ x
    inside = dict(axis=0, mode="constant", truncate=10)
    expected = gaussian_filter1d(x, 1.3, **inside) / gaussian_filter1d(np.ones_like(x), 1.3, **inside)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_solarize_inverts_the_bright_half_and_probabilities_are_per_view():
    groups = {"views": Group(count=2, size=8, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, solarize=(0.0, 1.0))}
    image = picture(8, 8, 2)[None]
    raw = {"image": image, "id": np.zeros(1, np.int32), "epoch": np.zeros(1, np.int32), "valid": np.ones(1, bool)}
    out = augment.make(groups, seed=0, mean=(0.0,) * 3, std=(1.0,) * 3)(raw)["views"]
    x = image[0] / 255.0
    np.testing.assert_allclose(out[0, 0], x, atol=1e-5)
    np.testing.assert_allclose(out[0, 1], np.where(x >= 0.5, 1 - x, x), atol=1e-5)


def test_host_crops_and_device_crops_reach_the_same_photometrics():
    groups = {"views": Group(count=2, size=8, brightness=0.4), "crops": Group(count=3, size=4)}
    make = jax.jit(augment.make(groups, seed=1, mean=(0.5,) * 3, std=(0.5,) * 3))
    ids = {"id": np.arange(4, dtype=np.int32), "epoch": np.zeros(4, np.int32), "valid": np.ones(4, bool)}
    host = make({"views": np.zeros((4, 2, 8, 8, 3), np.uint8), "crops": np.zeros((4, 3, 4, 4, 3), np.uint8), **ids})
    device = make({"image": np.zeros((4, 16, 16, 3), np.uint8), **ids})
    for name in groups:
        np.testing.assert_array_equal(host[name], device[name])
        assert host[name].dtype == jnp.float32


def test_views_change_with_epoch_seed_and_example():
    groups = {"views": Group(count=2, size=8, scale=(0.2, 1.0))}
    image = np.stack([picture(16, 16, 5)] * 2)

    def views(seed, epoch, ids):
        raw = {"image": image, "id": np.int32(ids), "epoch": np.int32([epoch] * 2), "valid": np.ones(2, bool)}
        return np.asarray(augment.make(groups, seed=seed, mean=(0.0,) * 3, std=(1.0,) * 3)(raw)["views"])

    base = views(0, 0, [1, 2])
    assert (base == views(0, 0, [1, 2])).all()
    assert (base[0, 0] != base[0, 1]).any() and (base[0] != base[1]).any()
    for other in (views(1, 0, [1, 2]), views(0, 1, [1, 2]), views(0, 0, [3, 4])):
        assert (base != other).any()
