"""FILIP's token-wise similarity against its definition in float64."""

import jax
import numpy as np
import pytest

from ssljax import losses

pytestmark = pytest.mark.quick


def test_filip_is_its_definition():
    rng = np.random.default_rng(0)
    unit = lambda *shape: (lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True))(rng.normal(size=shape))  # noqa: E731
    x, y, valid, scale = unit(5, 6, 8), unit(5, 4, 8), np.arange(4) < rng.integers(1, 5, (5, 1)), 7.0

    def definition(x):
        to_text, to_image = np.zeros((5, 5)), np.zeros((5, 5))
        for i in range(5):
            for j in range(5):
                s = x[i] @ y[j][valid[j]].T  # (patches, words)
                to_text[i, j], to_image[j, i] = s.max(1).mean(), s.max(0).mean()
        cross = lambda s: np.mean(np.log(np.exp(scale * s).sum(1)) - scale * np.diag(s))  # noqa: E731
        return (cross(to_text) + cross(to_image)) / 2

    got, gradient = jax.value_and_grad(losses.filip)(x.astype(np.float32), y.astype(np.float32), valid, scale)
    np.testing.assert_allclose(got, definition(x), rtol=1e-5)
    small = 1e-7 * rng.normal(size=x.shape)
    np.testing.assert_allclose((definition(x + small) - definition(x - small)) / 2, (np.asarray(gradient) * small).sum(), rtol=1e-4)
