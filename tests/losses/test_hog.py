"""HOG and Lab against scikit-image's."""

import numpy as np
import pytest
from skimage import color, feature

from ssljax import losses
from ssljax.augment import lab
from ssljax.errors import UserError

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("cell, orientations", [(8, 9), (4, 6)])
def test_hog_is_scikit_images(cell, orientations):
    images = np.random.default_rng(0).random((2, 32, 48, 3)).astype(np.float32)
    got = np.asarray(losses.hog(images, cell=cell, orientations=orientations))
    settings = dict(orientations=orientations, pixels_per_cell=(cell, cell), cells_per_block=(1, 1), block_norm="L2", feature_vector=False)
    for b, image in enumerate(images):
        for channel in range(3):
            want = feature.hog(image[..., channel].astype(np.float64), **settings)[:, :, 0, 0]
            # A pixel whose angle lies on the edge of two bins may fall into either.
            assert np.mean(np.abs(got[b, :, :, channel] - want) > 1e-4) < 0.01
    with pytest.raises(UserError, match="cell=5"):
        losses.hog(images, cell=5)


def test_lab_is_scikit_images_and_its_bins_cover_it():
    images = np.random.default_rng(1).random((4, 16, 16, 3)).astype(np.float32)
    got = np.asarray(lab.rgb_to_lab(images))
    np.testing.assert_allclose(got, color.rgb2lab(images), atol=2e-2)
    centres = lab.colour_bins(10)
    assert 250 < len(centres) < 350  # the paper's 313
    nearest = centres[np.asarray(lab.nearest_bin(got[..., 1:], centres))]
    assert np.abs(nearest - got[..., 1:]).max() <= 10
