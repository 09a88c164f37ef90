import numpy as np
import pytest

from ssljax.evals.lidar import lidar

pytestmark = pytest.mark.quick


def test_lidar_counts_the_directions_that_tell_images_apart():
    rng = np.random.default_rng(0)
    means, noise = np.zeros((200, 1, 8)), rng.normal(size=(200, 6, 8))
    means[..., :3] = 100 * rng.normal(size=(200, 1, 3))
    assert 2.9 < lidar(means + noise) < 3.1
    assert 7 < lidar(noise) < 8  # noise tells none apart more than another
    with pytest.raises(ValueError, match="at least 2 images"):
        lidar(noise[:1])
