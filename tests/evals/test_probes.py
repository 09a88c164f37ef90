"""Probes by steps, the sweep of neighbours, the bootstrap, and LiDAR, CKA and corruptions as evaluators."""

import numpy as np
import pytest

from ssljax import evals, evaluate
from ssljax.evals import Context, attentive, classify, corruptions, knn_sweep, sgd_linear
from ssljax.evals.cka import linear_cka
from ssljax.evals.lidar import lidar


def blobs(n, classes=3, d=6, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    centres = 2.0 * np.random.default_rng(7).normal(size=(classes, d))
    labels = rng.integers(0, classes, n)
    return (centres[labels] + spread * rng.normal(size=(n, d))).astype(np.float32), labels


def test_sgd_reaches_what_logistic_regression_does():
    from sklearn.linear_model import LogisticRegression

    (x, y), (u, v) = blobs(600), blobs(400, seed=1)
    out = sgd_linear.run(Context(train={"features": x, "label": y}, test={"features": u, "label": v}, classes=3))
    assert np.mean(out["sgd_linear_top1"]) >= LogisticRegression(max_iter=1000).fit(x, y).score(u, v) - 0.02
    assert out["sgd_linear_rate"] in sgd_linear.RATES


def test_every_rate_of_the_grid_is_trained_as_if_alone():
    x, y = blobs(300)
    both = sgd_linear.fit(x, y, classes=3, rates=(1e-4, 1e-1), epochs=1)
    alone = sgd_linear.fit(x, y, classes=3, rates=(1e-4,), epochs=1)
    assert np.abs(both["kernel"][0]).max() < np.abs(both["kernel"][1]).max()
    start = {k: v[0] for k, v in both.items()}
    # The start of each is drawn for the whole grid: compare how far it went, in its bias, which starts at 0.
    np.testing.assert_allclose(start["bias"], alone["bias"][0], atol=2e-4)


def test_an_attentive_probe_finds_the_one_patch_that_says_it():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    patches = rng.normal(size=(400, 3, 3, 16)).astype(np.float32)
    where = rng.integers(0, 9, 400)
    flat = patches.reshape(400, 9, 16)
    flat[np.arange(400), where, 0] = np.where(labels, 6.0, -6.0)  # one patch of nine, anywhere
    flat[np.arange(400), where, 1] = 8.0  # and that it is this one
    predicted = attentive.predict(patches[:300], labels[:300], patches[300:], classes=2, steps=300)
    assert np.mean(predicted == labels[300:]) > 0.9


def test_the_sweep_of_neighbours_takes_fewer_where_classes_are_small():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 8))
    x = np.concatenate([centres + 0.05 * rng.normal(size=centres.shape) for _ in range(6)])
    labels = np.tile(np.arange(60), 6)  # four of a class at hand: a hundred neighbours out-vote them at a high temperature
    k, temperature = knn_sweep.chosen({"features": x, "label": labels}, classes=60, ks=(1, 200), temperatures=(5.0,))
    assert (k, temperature) == (1, 5.0)


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        low, high = evals.bootstrap(rng.random(100) < 0.3, seed=trial, draws=200)
        inside += low <= 0.3 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_a_metric_of_one_number_an_example_is_told_with_its_interval():
    x, y = blobs(200, spread=4.0)
    context = Context(train={"features": x, "label": y}, test={"features": x, "label": y}, classes=3)
    numbers, reasons = evals.judge(["knn", "retrieval"], context)
    assert 0 < numbers["knn_top1_ci95"] < 0.1 and reasons == {"retrieval": "the test set gives no image_embedding, text_embedding"}


def test_a_classifier_is_judged_by_its_own_logits():
    logits = np.eye(7)[[0, 1, 2]] + 0.5 * np.eye(7)[[3, 4, 5]] - 0.1 * np.arange(7)
    out = classify.run(Context(train={}, test={"logits": logits, "label": np.array([0, 4, 6])}, classes=7))
    assert out["top1"].tolist() == [True, False, False] and out["top5"].tolist() == [True, True, False]
    with pytest.raises(evals.NotApplicable, match="gives no logits"):
        classify.run(Context(train={}, test={"label": np.zeros(3, int)}, classes=7))


def test_lidar_and_cka_look_at_views_and_layers():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (20, 4, 4, 3)).astype(np.uint8)
    weights = rng.normal(size=(48, 5))
    flat = lambda x: x.reshape(len(x), -1) / 255.0 @ weights  # noqa: E731
    look = lambda x: {"features": flat(x), "layers": np.stack([flat(x), flat(x) ** 2, flat(x) ** 3], 1)}  # noqa: E731
    views = lambda count: np.stack([np.roll(images, i, 1) for i in range(count)], 1)  # noqa: E731
    numbers, _ = evals.judge(["lidar", "cka"], Context(train={}, test={"image": images}, classes=2, look=look, views=views))
    wanted = np.stack([flat(np.roll(images, i, 1)) for i in range(10)], 1)
    assert numbers["lidar"] == pytest.approx(lidar(wanted), rel=1e-6)
    a, b, c = flat(images), flat(images) ** 2, flat(images) ** 3
    assert numbers["cka_ends"] == pytest.approx(linear_cka(a, c))
    assert numbers["cka_neighbours"] == pytest.approx((linear_cka(a, b) + linear_cka(b, c)) / 2)


def test_corrupted_pictures_are_told_less_well():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    stripes = np.where(labels[:, None, None, None], np.arange(16)[None, :, None, None] % 2, np.arange(16)[None, None, :, None] % 2)
    images = (60 + 120 * stripes * np.ones((1, 1, 1, 3)) + rng.integers(0, 20, (300, 16, 16, 3))).astype(np.uint8)
    edges = lambda x: np.stack([np.abs(np.diff(x.astype(float), axis=axis)).mean((1, 2, 3)) for axis in (1, 2)], 1)  # noqa: E731
    context = Context(
        train={"features": edges(images[:200]).astype(np.float32), "label": labels[:200]},
        test={"image": images[200:], "label": labels[200:], "features": edges(images[200:])},
        classes=2,
        look=lambda x: {"features": edges(np.asarray(x)).astype(np.float32)},
    )
    out = corruptions.run(context)
    assert np.mean(out["clean_top1"]) == 1.0 and out["corrupted_brightness_top1"] > 0.95
    assert out["corrupted_top1"].shape == (100,)
    assert out["corrupted_top1"].mean() == pytest.approx(np.mean([out[f"corrupted_{name}_top1"] for name in corruptions.ALEXNET]))
    assert out["corrupted_pixelate_top1"] < 1.0
    halves = {name: np.full(5, 0.5 * error) for name, error in corruptions.ALEXNET.items()}
    assert corruptions.mean_corruption_error(halves) == pytest.approx(0.5)


def test_effective_robustness_is_what_lies_above_the_baselines_line():
    clean = np.array([0.3, 0.5, 0.7])
    logit = np.log(clean / (1 - clean))
    shifted = 1 / (1 + np.exp(-(0.9 * logit - 0.8)))
    assert corruptions.effective_robustness(0.5, shifted[1], clean, shifted) == pytest.approx(0.0, abs=1e-9)
    assert corruptions.effective_robustness(0.5, shifted[1] + 0.07, clean, shifted) == pytest.approx(0.07)
    names = ("raw pixels", "random encoder", "pretrained", "pretrained")
    rows = [{"run": "x", "features": n, "clean_top1": c, "corrupted_top1": s} for n, c, s in zip(names, clean, shifted, strict=False)]
    rows += [
        {"run": "y", "features": "pretrained", "clean_top1": 0.5, "corrupted_top1": shifted[1] + 0.07},
        {"run": "z", "features": "knn"},
    ]
    evaluate.add_robustness(rows[:2])
    assert not any("effective_robustness" in row for row in rows)  # nothing to compare with
    evaluate.add_robustness([*rows[:2], rows[3]])
    assert rows[3]["effective_robustness"] == pytest.approx(0.07) and "effective_robustness" not in rows[0]
