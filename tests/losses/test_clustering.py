"""Assignments and their losses against definitions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import losses
from ssljax.errors import UserError
from tests.losses.numeric import check, normal, softmax, unit

pytestmark = pytest.mark.quick


def sinkhorn(q, iterations):
    """q: (B, K), positive."""
    q = q.T / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdims=True) / q.shape[0]
        q = q / q.sum(0, keepdims=True) / q.shape[1]
    return (q * q.shape[1]).T


@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_sinkhorn(iterations):
    scores = np.tanh(normal(2, 6, 5))
    got = losses.sinkhorn(jnp.asarray(scores, jnp.float32), epsilon=0.1, iterations=iterations)
    for problem in range(2):  # axes in front are problems of their own
        np.testing.assert_allclose(got[problem], sinkhorn(np.exp(scores[problem] / 0.1), iterations), rtol=1e-4, atol=1e-6)
    if iterations:
        np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-5)


def test_sinkhorn_leaves_masked_rows_out():
    scores, mask = np.tanh(normal(6, 5)), np.array([1, 0, 1, 1, 0, 1])
    got = losses.sinkhorn(jnp.asarray(scores, jnp.float32), mask=jnp.asarray(mask))
    np.testing.assert_allclose(got[mask == 1], sinkhorn(np.exp(scores[mask == 1] / 0.05), 3), rtol=1e-4, atol=1e-6)
    assert not got[mask == 0].any()
    assert not losses.sinkhorn(jnp.asarray(scores, jnp.float32), mask=jnp.zeros(6)).any()


def test_sinkhorn_of_scores_that_would_overflow():
    got = losses.sinkhorn(jnp.asarray(100 * normal(6, 5), jnp.float32))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-5)


def test_swav_with_a_queue():
    scores, queue = np.tanh(normal(3, 4, 5)), np.tanh(normal(2, 7, 5, seed=1))
    codes = [sinkhorn(np.exp(np.concatenate([scores[g], queue[g]]) / 0.05), 3)[:4] for g in range(2)]  # constant

    def definition(scores):
        log_p = np.log(softmax(scores / 0.1))
        return np.mean([-np.mean(np.sum(codes[g] * log_p[v], -1)) for g in range(2) for v in range(3) if v != g])

    check(lambda s: losses.swav(s, queue=jnp.asarray(queue, jnp.float32)), definition, scores)
    with pytest.raises(UserError, match="two crops"):
        losses.swav(jnp.zeros((1, 4, 5)), views=1)


def test_deepcluster_v2_leaves_images_without_a_cluster_out():
    scores, clusters = normal(2, 3, 4, 5), np.array([[0, 3, -1, 2], [1, 1, 4, -1]])

    def definition(scores):
        log_p = np.log(softmax(scores / 0.1))
        heads = [[-log_p[h, v, i, k] for v in range(3) for i, k in enumerate(clusters[h]) if k >= 0] for h in range(2)]
        return np.mean([np.mean(head) for head in heads])

    check(lambda s: losses.deepcluster_v2(s, jnp.asarray(clusters)), definition, scores)


@pytest.mark.parametrize("iterations, smoothing", [(3, 0.0), (2, 0.1)])
def test_msn(iterations, smoothing):
    prototypes = unit(normal(5, 6))
    student, teacher = unit(normal(2, 4, 6, seed=1)) @ prototypes.T, unit(normal(4, 6, seed=2)) @ prototypes.T
    smooth = lambda p: (1 - smoothing) * p + smoothing / 5  # noqa: E731
    q = smooth(softmax(teacher / 0.1)) ** (1 / 0.25)
    q = sinkhorn(q / q.sum(1, keepdims=True), iterations)

    def definition(student):
        p = smooth(softmax(student / 0.1))
        mean = p.reshape(-1, 5).mean(0)
        return -np.mean(np.sum(q * np.log(p), -1)) + 2 * (np.sum(mean * np.log(mean)) + np.log(5))

    hyper = dict(iterations=iterations, label_smoothing=smoothing, regularisation=2.0)
    teacher = jnp.asarray(teacher, jnp.float32)
    check(lambda s: losses.msn(s, teacher, **hyper), definition, student)
    assert not jax.grad(lambda t: losses.msn(jnp.asarray(student, jnp.float32), t, **hyper))(teacher).any()


def test_a_queue_that_is_not_used_is_as_none():
    scores, queue = (jnp.asarray(np.tanh(normal(*shape)), jnp.float32) for shape in ((3, 4, 5), (2, 6, 5)))
    unused, used = (losses.swav(scores, queue=queue, queue_used=jnp.float32(x)) for x in (0, 1))
    np.testing.assert_allclose(unused, losses.swav(scores), rtol=1e-6)
    np.testing.assert_allclose(used, losses.swav(scores, queue=queue), rtol=1e-6)
    assert abs(float(used - unused)) > 1e-3


def test_cosines():
    z, prototypes = normal(2, 3, 4), normal(5, 4)
    expected = unit(z) @ unit(prototypes).T
    np.testing.assert_allclose(
        losses.cosines(jnp.asarray(z, jnp.float32), jnp.asarray(prototypes, jnp.float32)), expected, rtol=1e-5, atol=1e-6
    )
