"""Pictures that the tests of augmentation share."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture():
    """picture(height, width, seed) -> uint8 (height, width, 3), smooth and colourful."""

    def make(height, width, seed=0):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))

    return make
