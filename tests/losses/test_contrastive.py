"""Contrastive losses against loops over the definitions in float64; the golden figures check their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import losses
from ssljax.errors import UserError
from tests.losses import numeric

pytestmark = pytest.mark.quick


def unit(shape, seed):
    x = np.random.default_rng(seed).normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def f32(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


def log_ratio(numerator, denominator):
    """-log(sum exp numerator / sum exp denominator)."""
    return np.log(np.sum(np.exp(denominator))) - np.log(np.sum(np.exp(numerator)))


def test_normalise():
    x = np.random.default_rng(0).normal(size=(4, 3, 5)) * 1e3
    got = losses.normalise(jnp.asarray(x, jnp.bfloat16))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1, rtol=1e-6)
    zero = jnp.zeros((2, 5))
    np.testing.assert_array_equal(losses.normalise(zero), zero)
    assert np.isfinite(jax.grad(lambda z: losses.normalise(z).sum())(zero)).all()


def test_clip_softmax():
    x, y, scale = unit((6, 9), 0), unit((6, 9), 1), 14.0
    logits = scale * x @ y.T
    expected = np.mean([(log_ratio(logits[i, i], logits[i]) + log_ratio(logits[i, i], logits[:, i])) / 2 for i in range(6)])
    np.testing.assert_allclose(losses.clip_softmax(*f32(x, y), scale), expected, rtol=1e-5)
    np.testing.assert_allclose(losses.clip_softmax(*f32(x, y), scale, -7.0), expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_info_nce(temperature):
    q, k, queue = unit((5, 8), 0), unit((5, 8), 1), unit((11, 8), 2)
    batch = np.mean([log_ratio(q[i] @ k[i] / temperature, q[i] @ k.T / temperature) for i in range(5)])
    np.testing.assert_allclose(losses.info_nce(*f32(q, k), temperature=temperature), batch, rtol=1e-5)
    keys = [np.vstack([k[i : i + 1], queue]) for i in range(5)]
    queued = np.mean([log_ratio(q[i] @ k[i] / temperature, q[i] @ keys[i].T / temperature) for i in range(5)])
    got = losses.info_nce(*f32(q, k), queue=jnp.asarray(queue, jnp.float32), temperature=temperature)
    np.testing.assert_allclose(got, queued, rtol=1e-5)


def test_nt_xent():
    z0, z1, temperature = unit((5, 8), 0), unit((5, 8), 1), 0.2
    z = np.vstack([z0, z1])
    others = lambda i: [z[i] @ z[j] / temperature for j in range(10) if j != i]  # noqa: E731
    expected = np.mean([log_ratio(z[i] @ z[(i + 5) % 10] / temperature, others(i)) for i in range(10)])
    np.testing.assert_allclose(losses.nt_xent(*f32(z0, z1), temperature=temperature), expected, rtol=1e-5)
    # Pairs are labels that occur twice: the general losses agree on them.
    labels = jnp.tile(jnp.arange(5), 2)
    for general in (losses.supcon, losses.multi_positive, losses.pair_nt_xent):
        got = general(jnp.asarray(z, jnp.float32), labels, temperature=temperature)
        np.testing.assert_allclose(got, expected, rtol=1e-5)


LABELS = np.array([0, 1, 0, 2, 1, 0, 3, 1])  # 2 and 3 have no positive


def by_label(function, temperature=0.3, anchors=8):
    """function(anchor's logits, indices of positives, of all others) -> list of losses; mean over all of them."""
    z, out = unit((8, 6), 3), []
    for i in range(anchors):
        others = [j for j in range(8) if j != i]
        positives = [j for j in others if LABELS[j] == LABELS[i]]
        if positives:
            out += function(z @ z[i] / temperature, positives, others)
    return z, np.mean(out)


def test_supcon():
    outside = lambda s, positives, others: [np.mean([log_ratio(s[p], s[others]) for p in positives])]  # noqa: E731
    for anchors in (8, 4):
        z, expected = by_label(outside, anchors=anchors)
        got = losses.supcon(*f32(z), jnp.asarray(LABELS), temperature=0.3, anchors=anchors)
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_multi_positive():
    z, expected = by_label(lambda s, positives, others: [log_ratio(s[positives], s[others])])
    np.testing.assert_allclose(losses.multi_positive(*f32(z), jnp.asarray(LABELS), temperature=0.3), expected, rtol=1e-5)


def test_pair_nt_xent():
    def pairs(s, positives, others):
        negatives = [j for j in others if j not in positives]
        return [log_ratio(s[p], s[[p, *negatives]]) for p in positives]

    z, expected = by_label(pairs)
    np.testing.assert_allclose(losses.pair_nt_xent(*f32(z), jnp.asarray(LABELS), temperature=0.3), expected, rtol=1e-5)


@pytest.mark.parametrize("labels", [np.arange(4), np.zeros(4, int)])
@pytest.mark.parametrize("loss", [losses.supcon, losses.multi_positive, losses.pair_nt_xent])
def test_no_positive_or_no_negative_is_finite(loss, labels):
    value, gradient = jax.value_and_grad(lambda z: loss(z, jnp.asarray(labels), temperature=0.1))(*f32(unit((4, 3), 0)))
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_precision():
    """bfloat16 embeddings give float32 losses, sharp temperatures do not overflow, and temperatures may be traced."""
    x, y = f32(unit((8, 16), 0), unit((8, 16), 1))
    exact = losses.clip_softmax(x.astype(jnp.bfloat16).astype(jnp.float32), y.astype(jnp.bfloat16).astype(jnp.float32), 100.0)
    got = losses.clip_softmax(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), 100.0)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact, rtol=1e-5)
    value, slope = jax.jit(jax.value_and_grad(lambda t: losses.nt_xent(x, y, temperature=t)))(jnp.float32(1e-4))
    assert np.isfinite(value) and np.isfinite(slope)


def test_enqueue():
    queue, keys = jnp.arange(10.0).reshape(5, 2), -jnp.ones((3, 2))
    wrapped, pointer = losses.enqueue(queue, jnp.int32(3), keys)
    np.testing.assert_array_equal(wrapped[:, 0], [-1, 2, 4, -1, -1])
    assert pointer == 1 and pointer.dtype == jnp.int32
    dropped, pointer = losses.enqueue(queue, jnp.int32(3), keys, overflow="drop")
    np.testing.assert_array_equal(dropped[:, 0], [0, 2, 4, -1, -1])
    assert pointer == 0
    with pytest.raises(UserError, match="batch of 6"):
        losses.enqueue(queue, 0, jnp.ones((6, 2)))
    with pytest.raises(UserError, match="wrap"):
        losses.enqueue(queue, 0, keys, overflow="no")


def test_unknown_impl():
    x = jnp.ones((2, 3))
    for call in (
        lambda: losses.clip_softmax(x, x, 1.0, impl="ring"),
        lambda: losses.info_nce(x, x, temperature=1.0, impl="ring"),
        lambda: losses.nt_xent(x, x, temperature=1.0, impl="ring"),
        lambda: losses.supcon(x, jnp.zeros(2), temperature=1.0, impl="ring"),
        lambda: losses.siglip(x, x, 1.0, 0.0, impl="ring"),
    ):
        with pytest.raises(UserError, match="'ring'.*dense"):
            call()
    assert losses.nt_xent(x, x, temperature=1.0, impl="dense") == losses.nt_xent(x, x, temperature=1.0)


def hard_negatives(z0, z1, temperature, beta, prior):
    z, batch = np.vstack([z0, z1]), len(z0)
    terms = []
    for i in range(2 * batch):
        negatives = np.exp([z[i] @ z[j] / temperature for j in range(2 * batch) if j % batch != i % batch])
        positive, count = np.exp(z[i] @ z[(i + batch) % (2 * batch)] / temperature), len(negatives)
        hard = np.sum(negatives ** (1 + beta)) / np.mean(negatives**beta)
        total = max((hard - prior * count * positive) / (1 - prior), count * np.exp(-1 / temperature))
        terms.append(-np.log(positive / (positive + total)))
    return np.mean(terms)


@pytest.mark.parametrize("impl", ["dense", "auto"])
@pytest.mark.parametrize("beta, prior, temperature", [(1.0, 0.1, 0.5), (0.5, 0.0, 0.2), (0.0, 0.05, 0.5), (1.0, 0.3, 0.2)])
def test_hard_negative_nce(beta, prior, temperature, impl):
    """The last has anchors whose negatives are clamped."""
    settings = dict(temperature=temperature, beta=beta, prior=prior)
    ours = lambda z0, z1: losses.hard_negative_nce(z0, z1, impl=impl, **settings)  # noqa: E731
    numeric.check(ours, lambda z0, z1: hard_negatives(z0, z1, **settings), unit((5, 8), 0), unit((5, 8), 1))


def test_hard_negative_nce_without_weights_is_nt_xent_and_sharp_temperatures_are_finite():
    z0, z1 = f32(unit((5, 8), 0), unit((5, 8), 1))
    plain = losses.hard_negative_nce(z0, z1, temperature=0.3, beta=0.0, prior=0.0)
    np.testing.assert_allclose(plain, losses.nt_xent(z0, z1, temperature=0.3), rtol=1e-6)
    numeric.finite(lambda a, b: losses.hard_negative_nce(a, b, temperature=0.005, beta=1.0, prior=0.1), z0, -z0)
    numeric.finite(lambda a, b: losses.hard_negative_nce(a, b, temperature=0.005, beta=1.0, prior=0.1), z0, z0)


def test_info_nce_with_negatives_of_each_query():
    def definition(q, k, own, queue):
        rows = [np.concatenate([np.vstack([k[i : i + 1], queue]) @ q[i] / 0.3, own[i]]) for i in range(5)]
        return np.mean([log_ratio(row[0], row) for row in rows])

    ours = lambda q, k, own, queue: losses.info_nce(q, k, queue=jnp.asarray(queue, jnp.float32), own=own, temperature=0.3)  # noqa: E731
    own = np.random.default_rng(2).normal(size=(5, 3))
    numeric.check(ours, definition, unit((5, 8), 0), unit((5, 8), 1), own, constant=(unit((7, 8), 3),))


def test_hardest():
    q, queue = unit((3, 6), 0), unit((9, 6), 1)
    np.testing.assert_array_equal(losses.hardest(*f32(q, queue), 4), np.argsort(-q @ queue.T, axis=1)[:, :4])


def test_mixed_info_nce():
    weights = np.random.default_rng(4).dirichlet(np.ones(6), 6)

    def definition(q, k):
        logits = q @ k.T / 0.3
        return -np.mean(np.sum(weights * np.log(numeric.softmax(logits)), axis=1))

    for impl in ("dense", "auto"):

        def ours(q, k, impl=impl):
            return losses.mixed_info_nce(q, k, jnp.asarray(weights, jnp.float32) @ k, temperature=0.3, impl=impl)

        numeric.check(ours, definition, unit((6, 8), 0), unit((6, 8), 1))


def test_nce():
    """Against the chances h of the paper, with N written out."""
    examples, rng = 50, np.random.default_rng(0)

    def definition(positive, noise):
        z = examples * np.exp(0.4)
        chance = lambda logit: (np.exp(logit) / z) / (np.exp(logit) / z + noise.shape[1] / examples)  # noqa: E731
        return -np.mean(np.log(chance(positive)) + np.sum(np.log(1 - chance(noise)), axis=1))

    numeric.check(lambda p, n: losses.nce(p, n, 0.4), definition, rng.normal(size=6), rng.normal(size=(6, 9)))
    logits = rng.normal(size=(3, 4))
    np.testing.assert_allclose(losses.log_mean_exp(jnp.asarray(logits, jnp.float32)), np.log(np.mean(np.exp(logits))), rtol=1e-6)
