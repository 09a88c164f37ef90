import numpy as np
import pytest

from ssljax.evals import Context, rankme

pytestmark = pytest.mark.quick


def reference(x, eps):
    s = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    p = s / s.sum() + eps
    return np.exp(-np.sum(p * np.log(p)))


@pytest.mark.parametrize("shape", [(64, 16), (20, 30), (9, 9), (500, 12)])
@pytest.mark.parametrize("eps", [1e-7, 1e-5])
def test_rankme_is_equation_3(shape, eps):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=shape) * np.logspace(0, -2, shape[1]) + 0.5).astype(np.float32)
    assert rankme.rankme(x, eps=eps) == pytest.approx(reference(x, eps), rel=1e-4)


def test_rankme_of_known_ranks():
    rng = np.random.default_rng(0)
    low = (rng.normal(size=(50, 3)) @ rng.normal(size=(3, 20))).astype(np.float32)
    assert 1 < rankme.rankme(low) < 3.01
    assert rankme.rankme(np.ones((50, 20), np.float32)) == pytest.approx(1, rel=1e-3)
    assert rankme.rankme(np.eye(8, dtype=np.float32)) == pytest.approx(8, rel=1e-4)
    assert np.isfinite(rankme.rankme(np.zeros((5, 3), np.float32)))


def test_feature_std():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 16))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert rankme.feature_std(x.astype(np.float32)) == pytest.approx(unit.std(0).mean() * 4, rel=1e-5)
    assert rankme.feature_std(np.ones((10, 4), np.float32) * np.arange(1, 11)[:, None]) == pytest.approx(0, abs=1e-6)


def test_run():
    x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    assert set(rankme.run(Context({}, {"features": x}, classes=2))) == {"rankme", "feature_std"}
