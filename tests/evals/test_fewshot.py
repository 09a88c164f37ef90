"""Few-shot ridge against scikit-learn's, and alignment and uniformity against their sums over pairs."""

import itertools

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from ssljax import evals
from ssljax.evals import fewshot, uniformity

pytestmark = pytest.mark.quick


def data(n=200, dim=12, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return rng.normal(size=(n, dim)) + 1.5 * np.eye(dim)[labels], labels


@pytest.mark.parametrize("count", [8, 120])  # fewer and more examples than dimensions
def test_ridge_is_scikit_learns(count):
    (x, labels), (y, truth) = data(), data(seed=1)
    x, labels = x[:count], labels[:count]
    scaled = lambda z: np.concatenate([(z - x.mean(0)) / x.std(0), np.ones((len(z), 1))], axis=1)  # noqa: E731
    model = Ridge(alpha=3.0, fit_intercept=False).fit(scaled(x), 2.0 * np.eye(4)[labels] - 1)
    want = np.mean(model.predict(scaled(y)).argmax(-1) == truth)
    assert fewshot.accuracy(x, labels, y, truth, classes=4, ridge=3.0) == pytest.approx(want)


def test_more_shots_are_better_and_too_many_are_left_out():
    (x, labels), (y, truth) = data(n=80), data(seed=1)
    context = evals.Context(train={"features": x, "label": labels}, test={"features": y, "label": truth}, classes=4)
    out = fewshot.run(context)
    assert {"fewshot_1_top1", "fewshot_5_top1", "fewshot_10_top1"} <= set(out) and "fewshot_25_top1" not in out
    assert 0.25 < out["fewshot_1_top1"] < out["fewshot_10_top1"]
    assert out == fewshot.run(context)
    with pytest.raises(evals.NotApplicable, match="a class has 0"):
        fewshot.run(evals.Context(train={"features": x, "label": 0 * labels}, test={"features": y, "label": truth}, classes=4))


def test_alignment_and_uniformity_are_their_sums_over_pairs():
    x, labels = data(n=30)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    pairs = list(itertools.combinations(range(30), 2))
    squared = {p: float(np.square(x[p[0]] - x[p[1]]).sum()) for p in pairs}
    own = [squared[p] for p in pairs if labels[p[0]] == labels[p[1]]]
    out = uniformity.run(evals.Context(train={}, test={"features": 3 * x, "label": labels}, classes=4))
    assert out["alignment"] == pytest.approx(np.mean(own), rel=1e-5)
    assert out["uniformity"] == pytest.approx(np.log(np.mean([np.exp(-2 * s) for s in squared.values()])), rel=1e-5)
