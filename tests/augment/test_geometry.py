"""Crops, flips and boxes against Pillow and the published laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ssljax import augment
from ssljax.augment import Group, geometry

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("box", [(0, 0, 40, 56), (8, 4, 24, 40), (3, 5, 16, 16)])
def test_crop_and_resize_is_pillows_bilinear(box, picture):
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


def test_flip_is_a_mirror_and_half_are_flipped(picture):
    image = jnp.asarray(picture(16, 16) / 255.0, jnp.float32)
    whole = dict(count=1, size=16, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    never = geometry.random_resized_crop(jax.random.key(3), image, Group(**whole, flip=0.0))
    always = geometry.random_resized_crop(jax.random.key(3), image, Group(**whole, flip=1.0))
    np.testing.assert_allclose(never, image, atol=1e-5)
    np.testing.assert_allclose(always, image[:, ::-1], atol=1e-5)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_view_shows_what_lies_in_its_box(flip):
    """An image whose pixels say where they lie: a view of it, between its outer pixels' centres, is its box."""
    y, x = np.meshgrid(*[(np.arange(64) + 0.5) / 64] * 2, indexing="ij")
    image, group = np.stack([y, x, 0 * x], -1), Group(count=2, size=16, scale=(0.2, 0.5), flip=flip, boxes=True)
    raw = {"image": np.round(image * 255)[None].astype(np.uint8), "id": np.zeros(1, np.int32), "epoch": np.zeros(1, np.int32)}
    batch = augment.make({"views": group}, seed=0, mean=(0, 0, 0), std=(1, 1, 1))(raw)
    for view, (y0, x0, y1, x1) in zip(np.asarray(batch["views"][0]), np.asarray(batch["views_box"][0]), strict=True):
        assert (x0 > x1) == bool(flip) and y0 < y1
        middle = (np.arange(2, 14) + 0.5) / 16  # not where the image ends
        np.testing.assert_allclose(view[2:14, 5, 0], y0 + middle * (y1 - y0), atol=5e-3)
        np.testing.assert_allclose(view[5, 2:14, 1], x0 + middle * (x1 - x0), atol=5e-3)


def test_erased_boxes_follow_the_law_of_area_and_ratio():
    keys = jax.random.split(jax.random.key(0), 4000)
    top, left, bottom, right = np.asarray(jax.vmap(lambda k: jnp.stack(geometry.erase_box(k, 100, 80, (0.02, 0.33), (0.3, 3.3))))(keys)).T
    h, w = bottom - top, right - left
    assert (h > 0).all() and (h < 100).all() and (w > 0).all() and (w < 80).all()
    assert top.min() == 0 and left.min() == 0 and bottom.max() == 100 and right.max() == 80
    # The law drawn again in numpy, one try after the other.
    rng = np.random.default_rng(1)
    expected = []
    while len(expected) < 20_000:
        area, ratio = rng.uniform(0.02, 0.33) * 8000, np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
        a, b = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if a < 100 and b < 80:
            expected.append((a, b, rng.integers(0, 100 - a + 1), rng.integers(0, 80 - b + 1)))
    for got, want in zip((h, w, top, left), np.transpose(expected), strict=True):
        quantiles = np.linspace(0.05, 0.95, 10)
        np.testing.assert_allclose(np.quantile(got, quantiles), np.quantile(want, quantiles), atol=2.5)


@pytest.mark.parametrize("noise", [False, True])
def test_erasing_changes_a_box_and_nothing_else(noise):
    x = jnp.full((20, 20, 3), 7.0)
    group = Group(count=1, size=20, erase_noise=noise)
    np.testing.assert_array_equal(geometry.erase(jax.random.key(0), x, group, 0.0), x)
    out = np.asarray(geometry.erase(jax.random.key(0), x, group, 1.0))
    gone = (out != 7).all(-1)
    rows, columns = np.where(gone.any(1))[0], np.where(gone.any(0))[0]
    assert gone[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all() and 0.01 <= gone.mean() <= 0.4
    assert abs(out[gone].mean()) < 0.5 and (0.7 < out[gone].std() < 1.3 if noise else (out[gone] == 0).all())
