import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ssljax.evals import linear

pytestmark = pytest.mark.quick


def data(n=400, d=12, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) * np.logspace(-2, 1, d)  # badly scaled and correlated
    x = rng.normal(size=(n, d))
    y = (x @ rng.normal(size=(d, classes)) + rng.gumbel(size=(n, classes))).argmax(1)
    return (x @ mix + rng.normal(size=d)).astype(np.float32), y


def objective(weights, bias, x, y, r):
    logits = x @ weights + bias
    logits = logits - logits.max(1, keepdims=True)
    return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]) + r / 2 * np.sum(weights**2)


def test_agrees_with_sklearn_for_every_regulariser():
    x, y = data()
    regularisers = (1e-3, 1e-2, 1e-1, 1.0)
    probe = linear.fit(x, y, classes=5, regularisers=regularisers, steps=500, tolerance=1e-6)
    scaled = StandardScaler().fit_transform(x.astype(np.float64))
    for i, r in enumerate(regularisers):
        sk = LogisticRegression(C=1 / (r * len(x)), tol=1e-8, max_iter=5000).fit(scaled, y)
        best = objective(sk.coef_.T, sk.intercept_, scaled, y, r)
        ours = objective(probe["weights"][i].astype(np.float64), probe["bias"][i].astype(np.float64), scaled, y, r)
        assert ours == pytest.approx(best, rel=1e-5)
        assert probe["loss"][i] == pytest.approx(best, rel=1e-5)
        np.testing.assert_allclose(probe["weights"][i], sk.coef_.T, atol=2e-3)
        predicted = linear.predict(probe, x)[i]
        assert np.mean(predicted == sk.predict(scaled)) >= 0.995
    assert (probe["gradient"] <= 1e-5).all()


def test_a_sweep_is_its_members_alone():
    x, y = data(200)
    together = linear.fit(x, y, classes=5, regularisers=(1e-2, 1e-1), steps=300)
    for i, r in enumerate((1e-2, 1e-1)):
        alone = linear.fit(x, y, classes=5, regularisers=(r,), steps=300)
        np.testing.assert_allclose(together["weights"][i], alone["weights"][0], atol=2e-3)
        assert together["loss"][i] == pytest.approx(alone["loss"][0], rel=1e-5)


@pytest.mark.thorough
def test_features_whose_variances_fall_as_a_power_converge():
    """As learnt features' do; without the principal axes this takes some hundred evaluations more."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 2000)
    spread = (rng.normal(size=(10, 128))[y] + 10 * rng.normal(size=(2000, 128))) / np.arange(1, 129)
    x = (spread @ np.linalg.qr(rng.normal(size=(128, 128)))[0]).astype(np.float32)
    probe = linear.fit(x, y, classes=10, regularisers=(1e-5, 1e-3, 1e-1), steps=80)
    assert (probe["gradient"] <= 1e-5).all()
    scaled = StandardScaler().fit_transform(x.astype(np.float64))
    sk = LogisticRegression(C=1 / (1e-3 * len(x)), tol=1e-8, max_iter=5000).fit(scaled, y)
    assert probe["loss"][1] == pytest.approx(objective(sk.coef_.T, sk.intercept_, scaled, y, 1e-3), rel=1e-5)


def test_blocks_change_nothing(monkeypatch):
    x, y = data(203)
    whole = linear.fit(x, y, classes=5, regularisers=(1e-2,), steps=300)
    monkeypatch.setattr(linear, "BLOCK", 5 * 7)  # seven rows a block
    blocks = linear.fit(x, y, classes=5, regularisers=(1e-2,), steps=300)
    assert blocks["loss"][0] == pytest.approx(whole["loss"][0], rel=1e-5)
    np.testing.assert_array_equal(linear.predict(blocks, x).shape, (1, 203))


def test_separable_and_constant_features_stay_finite():
    x = np.concatenate([np.eye(3)[np.arange(60) % 3] * 1e3, np.full((60, 1), 7.0)], 1).astype(np.float32)
    probe = linear.fit(x, np.arange(60) % 3, classes=4, regularisers=(1e-6, 1.0))  # class 3 never occurs
    assert all(np.isfinite(probe[k]).all() for k in ("weights", "bias", "loss"))
    np.testing.assert_array_equal(linear.predict(probe, x)[0], np.arange(60) % 3)


def test_evaluate_chooses_inside_the_train_set_and_is_deterministic():
    """Few examples of many noisy features: only strong regularisation generalises, and the test labels are not needed
    to see it.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(260, 60)).astype(np.float32)
    y = (x[:, 0] + 0.3 * rng.normal(size=260) > 0).astype(int)
    train, test = {"features": x[:120], "label": y[:120]}, {"features": x[120:], "label": y[120:]}
    out = linear.evaluate(train, test, classes=2, regularisers=(1e-6, 1e-1))
    assert out["linear_regulariser"] == pytest.approx(1e-1)
    assert out == linear.evaluate(train, test, classes=2, regularisers=(1e-1, 1e-6))
    shuffled = linear.evaluate(train, test | {"label": 1 - y[120:]}, classes=2, regularisers=(1e-6, 1e-1))
    assert shuffled["linear_regulariser"] == out["linear_regulariser"]
    assert shuffled["linear_top1"] == pytest.approx(1 - out["linear_top1"])
    scaled = StandardScaler().fit(x[:120])
    sk = LogisticRegression(C=2 / (1e-1 * 120), tol=1e-8, max_iter=1000).fit(scaled.transform(x[:120]), y[:120])
    assert out["linear_top1"] == pytest.approx(sk.score(scaled.transform(x[120:]), y[120:]), abs=0.01)
