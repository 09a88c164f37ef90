"""Margins and neighbourhoods against loops over pairs and triplets in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import losses
from ssljax.errors import UserError
from tests.losses.numeric import check, finite, normal, softmax, unit

pytestmark = pytest.mark.quick

LABELS = np.array([0, 1, 0, 2, 1, 0, 3])  # 2 and 3 have no positive
MARGINS = dict(positive_margin=0.2, negative_margin=1.5)


def pairs(z):
    """-> distances, positives of each i, negatives of each i."""
    d = np.linalg.norm(z[:, None] - z[None], axis=-1)
    others = [[j for j in range(len(z)) if j != i] for i in range(len(z))]
    return d, [[j for j in o if LABELS[j] == LABELS[i]] for i, o in enumerate(others)], [
        [j for j in o if LABELS[j] != LABELS[i]] for i, o in enumerate(others)
    ]  # fmt: skip


def above_zero(values):
    values = [v for v in values if v > 0]
    return np.mean(values) if values else 0.0


def contrastive(z):
    d, positives, negatives = pairs(z)
    near = above_zero([d[i, p] - 0.2 for i in range(len(z)) for p in positives[i]])
    return near + above_zero([1.5 - d[i, n] for i in range(len(z)) for n in negatives[i]])


def triplets(z, swap):
    d, positives, negatives = pairs(z)
    far = lambda i, p, n: min(d[i, n], d[p, n]) if swap else d[i, n]  # noqa: E731
    return above_zero([d[i, p] - far(i, p, n) + 0.3 for i in range(len(z)) for p in positives[i] for n in negatives[i]])


def lifted(z):
    d, positives, negatives = pairs(z)
    away = lambda i: sum(np.exp(1.5 - d[i, n]) for n in negatives[i])  # noqa: E731
    terms = [np.log(away(i) + away(p)) + d[i, p] - 0.2 for i in range(len(z)) for p in positives[i]]
    return np.mean(np.maximum(terms, 0) ** 2) / 2


def generalised(z):
    d, positives, negatives = pairs(z)
    near = [np.log(np.sum(np.exp(d[i, p] - 0.2))) if p else 0 for i, p in enumerate(positives)]
    return np.mean([max(near[i] + np.log(np.sum(np.exp(1.5 - d[i, n]))), 0) for i, n in enumerate(negatives)])


def soft_nearest(z):
    d, positives, negatives = pairs(z)
    e = np.exp(-(d**2) / 0.7)
    return np.mean([-np.log(e[i, p].sum() / e[i, p + negatives[i]].sum()) for i, p in enumerate(positives) if p])


def nca(z):
    d, positives, negatives = pairs(z)
    e = np.exp(-(d**2) / 0.7)
    return np.mean([1 - e[i, p].sum() / e[i, p + negatives[i]].sum() for i, p in enumerate(positives) if p])


def multi_similarity(z):
    _, positives, negatives = pairs(z)
    s = z @ z.T - 0.5
    near = [np.log(1 + np.sum(np.exp(-2 * s[i, p]))) / 2 for i, p in enumerate(positives)]
    return np.mean(near) + np.mean([np.log(1 + np.sum(np.exp(50 * s[i, n]))) / 50 for i, n in enumerate(negatives)])


BY_LABEL = {
    "contrastive": (lambda z, y: losses.contrastive_by_label(z, y, **MARGINS), contrastive),
    "triplet": (lambda z, y: losses.triplet_by_label(z, y, margin=0.3), lambda z: triplets(z, False)),
    "triplet, swapped": (lambda z, y: losses.triplet_by_label(z, y, margin=0.3, swap=True), lambda z: triplets(z, True)),
    "lifted": (lambda z, y: losses.lifted_structure(z, y, **MARGINS), lifted),
    "generalised lifted": (lambda z, y: losses.generalised_lifted_structure(z, y, **MARGINS), generalised),
    "soft nearest neighbour": (lambda z, y: losses.soft_nearest_neighbour(z, y, temperature=0.7), soft_nearest),
    "nca": (lambda z, y: losses.nca(z, y, temperature=0.7), nca),
    "multi-similarity": (losses.multi_similarity, multi_similarity),
}


@pytest.mark.parametrize("name", BY_LABEL)
def test_by_label(name):
    ours, definition = BY_LABEL[name]
    check(lambda z: ours(z, jnp.asarray(LABELS)), definition, unit(normal(7, 5)))


def test_finite_where_rows_are_equal_or_labels_say_nothing():
    every = jax.jit(jax.value_and_grad(lambda z, labels: sum(ours(z, labels) for ours, _ in BY_LABEL.values())))
    for labels in (LABELS, np.zeros(7, int), np.arange(7)):
        for z in (jnp.ones((7, 5)), jnp.zeros((7, 5))):
            value, gradient = every(z, jnp.asarray(labels))
            assert np.isfinite(value) and np.isfinite(gradient).all()
    pairs = lambda a, b: losses.triplet(a, b, a, eps_on="sum") + losses.contrastive_pairs(a, b, jnp.zeros(7), margin=1.0)  # noqa: E731
    finite(pairs, *np.ones((2, 7, 5)))


def test_nca_of_unit_vectors_is_multi_positive_at_half_the_temperature():
    z, labels = jnp.asarray(unit(normal(7, 5)), jnp.float32), jnp.asarray(LABELS)
    ours = losses.soft_nearest_neighbour(z, labels, temperature=0.7)
    np.testing.assert_allclose(ours, losses.multi_positive(z, labels, temperature=0.35), rtol=1e-5)


def test_n_pair():
    def definition(x, y):
        target = (LABELS[:, None] == LABELS[None, :]) / np.sum(LABELS[:, None] == LABELS[None, :], axis=1, keepdims=True)
        cross = -np.mean(np.sum(target * np.log(softmax(x @ y.T / 0.5)), axis=1))
        return cross + 0.02 * np.mean(np.sum(x**2, 1) + np.sum(y**2, 1)) / 2

    ours = lambda x, y: losses.n_pair(x, y, jnp.asarray(LABELS), penalty=0.02, temperature=0.5)  # noqa: E731
    check(ours, definition, normal(7, 5), normal(7, 5, seed=1))


@pytest.mark.parametrize("metric", ["manhattan", "cosine"])
def test_contrastive_pairs(metric):
    x, y, same = normal(6, 4), normal(6, 4, seed=1), np.array([1, 0, 1, 0, 0, 1])

    def definition(x, y):
        d = np.abs(x - y + 1e-6).sum(1) if metric == "manhattan" else 1 - np.sum(unit(x) * unit(y), 1)
        return np.mean(np.where(same, d, np.maximum(1.5 - d, 0)) ** 2) / 2

    check(lambda x, y: losses.contrastive_pairs(x, y, jnp.asarray(same), margin=1.5, metric=metric), definition, x, y)
    with pytest.raises(UserError, match="'cosine'"):
        losses.contrastive_pairs(x, y, same, margin=1.5, metric="hamming")


@pytest.mark.parametrize("norm, swap, eps_on", [(1, True, "difference"), (3, False, "sum"), (2, True, "sum")])
def test_triplet(norm, swap, eps_on):
    def definition(a, p, n):
        inside, outside = (1e-3, 0) if eps_on == "difference" else (0, 1e-3)
        d = lambda x, y: (np.sum(np.abs(x - y + inside) ** norm, 1) + outside) ** (1 / norm)  # noqa: E731
        away = np.minimum(d(a, n), d(p, n)) if swap else d(a, n)
        return np.mean(np.maximum(d(a, p) - away + 0.5, 0))

    hyper = dict(margin=0.5, norm=norm, swap=swap, eps=1e-3, eps_on=eps_on)
    check(lambda *z: losses.triplet(*z, **hyper), definition, *(normal(6, 4, seed=i) for i in range(3)))
    with pytest.raises(UserError, match="'sum'"):
        losses.triplet(*np.zeros((3, 2, 2)), eps_on="both")
