import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import losses

pytestmark = pytest.mark.quick


def test_siglip():
    rng = np.random.default_rng(0)
    x, y, scale, bias = rng.normal(size=(7, 5)), rng.normal(size=(7, 5)), 3.0, -4.0
    total = 0.0
    for i in range(7):
        for j in range(7):
            sign = 1.0 if i == j else -1.0
            total += np.log1p(np.exp(-sign * (scale * x[i] @ y[j] + bias)))
    got = losses.siglip(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), scale, bias)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, total / 7, rtol=1e-5)
