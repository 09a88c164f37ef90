"""ImageNet-C's corruptions against their published definitions, written anew with SciPy, scikit-image and Pillow."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import color, data

from ssljax.augment import corruptions
from ssljax.errors import UserError

SIDE = 224


@pytest.fixture(scope="module")
def picture():
    return np.asarray(Image.fromarray(data.astronaut()).resize((SIDE, SIDE))).astype(np.float64) / 255.0


def corrupted(name, picture, severity, seed=0):
    images = jnp.asarray(picture, jnp.float32)[None]
    return np.asarray(corruptions.apply(name, jax.random.PRNGKey(seed), images, severity)[0], np.float64)


def test_noise_has_the_published_laws(picture):
    grey = np.full((SIDE, SIDE, 3), 0.5)
    assert np.std(corrupted("gaussian_noise", grey, 2)) == pytest.approx(0.12, rel=0.02)
    shot = corrupted("shot_noise", grey, 3)
    assert shot.mean() == pytest.approx(0.5, abs=0.005) and shot.std() == pytest.approx((0.5 / 12) ** 0.5, rel=0.05)
    np.testing.assert_allclose(shot * 12, np.round(shot * 12), atol=1e-4)
    changed = corrupted("impulse_noise", grey, 5) != grey
    assert changed.mean() == pytest.approx(0.27, abs=0.01)
    assert set(np.unique(corrupted("impulse_noise", grey, 5))) == {0.0, 0.5, 1.0}


def test_defocus_is_a_smoothed_disk(picture):
    radius, smooth = 6, 0.5  # severity 3
    grid = np.arange(-8, 9)
    disk = (grid[:, None] ** 2 + grid[None] ** 2 <= radius**2).astype(float)
    line = np.exp(-np.square(np.arange(-1, 2)) / (2 * smooth**2))
    kernel = ndimage.convolve(disk / disk.sum(), np.outer(line, line) / line.sum() ** 2, mode="mirror")
    wanted = np.stack([ndimage.convolve(picture[..., c], kernel, mode="mirror") for c in range(3)], -1)
    np.testing.assert_allclose(corrupted("defocus_blur", picture, 3), wanted, atol=2e-5)


def test_zoom_blur_is_the_mean_of_zooms(picture):
    total = np.zeros_like(picture)
    zooms = np.arange(1, 1.21, 0.02)  # severity 3
    for zoom in zooms:
        kept = int(np.ceil(SIDE / zoom))
        top = (SIDE - kept) // 2
        centre = picture[top : top + kept, top : top + kept]
        large = ndimage.zoom(centre, (zoom, zoom, 1), order=1)
        cut = (len(large) - SIDE) // 2
        total += large[cut : cut + SIDE, cut : cut + SIDE]
    wanted = (picture + total) / (len(zooms) + 1)
    # SciPy enlarges to whole pixels and cuts; ours samples the same centre: within a fraction of a pixel of each other.
    assert np.abs(corrupted("zoom_blur", picture, 3) - wanted).mean() < 0.01


def test_motion_blur_is_half_a_gaussian_along_a_line(picture):
    angle = float(jax.random.uniform(jax.random.split(jax.random.PRNGKey(0), 1)[0], (), minval=-45.0, maxval=45.0))
    radius, sigma = 15, 8
    weights = np.exp(-np.square(np.arange(2 * radius + 1)) / (2 * sigma**2))
    wanted = np.zeros_like(picture)
    for i, weight in enumerate(weights / weights.sum()):
        down, across = (int(np.ceil(i * part - 0.5)) for part in (np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))))
        rows, columns = (np.clip(np.arange(SIDE) + step, 0, SIDE - 1) for step in (down, across))
        wanted += weight * picture[rows][:, columns]
    np.testing.assert_allclose(corrupted("motion_blur", picture, 3), wanted, atol=1e-5)


def test_brightness_and_contrast(picture):
    hsv = color.rgb2hsv(picture)
    hsv[..., 2] = np.clip(hsv[..., 2] + 0.3, 0, 1)
    np.testing.assert_allclose(corrupted("brightness", picture, 3), color.hsv2rgb(hsv), atol=1e-5)
    mean = picture.mean((0, 1))
    np.testing.assert_allclose(corrupted("contrast", picture, 4), np.clip((picture - mean) * 0.1 + mean, 0, 1), atol=1e-6)


def test_pixelate_is_pillows_box_twice(picture):
    image = Image.fromarray(np.round(picture * 255).astype(np.uint8))
    small = image.resize((int(SIDE * 0.3),) * 2, Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.BOX)
    np.testing.assert_allclose(corrupted("pixelate", picture, 4), np.asarray(small) / 255.0, atol=1.5 / 255)


@pytest.mark.parametrize("severity, quality", [(1, 25), (5, 7)])
def test_jpeg_is_what_libjpeg_makes(picture, severity, quality):
    file = io.BytesIO()
    Image.fromarray(np.round(picture * 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    wanted = np.asarray(Image.open(file)) / 255.0
    ours = corrupted("jpeg_compression", picture, severity)
    assert np.abs(ours - wanted).mean() < 0.2 * np.abs(wanted - picture).mean()


def test_plasma_is_rougher_the_less_it_decays():
    fields = [np.asarray(corruptions.plasma(jax.random.PRNGKey(0), SIDE, SIDE, decay)) for decay in (3.0, 1.4)]
    assert all(field.min() == 0 and field.max() == 1 for field in fields)
    rough = [np.abs(np.diff(field, axis=0)).mean() for field in fields]
    assert rough[1] > 3 * rough[0]


@pytest.mark.parametrize("name", list(corruptions.CORRUPTIONS))
def test_every_corruption_stays_in_range_and_grows_with_severity(name, picture):
    small = np.asarray(Image.fromarray((picture * 255).astype(np.uint8)).resize((96, 96))) / 255.0
    images = jnp.asarray(np.stack([small, small]), jnp.float32)
    weak, strong = (np.asarray(corruptions.apply(name, jax.random.PRNGKey(1), images, s)) for s in (1, 5))
    for out in (weak, strong):
        assert out.shape == images.shape and np.isfinite(out).all() and out.min() >= 0 and out.max() <= 1
    if name != "elastic_transform":  # whose first severities bend long waves, and the others short ones
        assert np.abs(strong - images).mean() > np.abs(weak - images).mean() > 0
    if name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"):
        assert (strong[0] != strong[1]).any()  # each picture has draws of its own


def test_wrong_names_and_severities_are_refused(picture):
    with pytest.raises(UserError, match="corruption 'rain': expected one of gaussian_noise"):
        corrupted("rain", picture, 1)
    with pytest.raises(UserError, match="severity=6: expected 1 to 5"):
        corrupted("fog", picture, 6)
