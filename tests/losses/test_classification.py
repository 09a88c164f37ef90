"""Cross entropies against definitions in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import losses
from tests.losses.numeric import check, normal, softmax

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("masked", [False, True])
def test_cross_entropy(smoothing, masked):
    labels, mask = np.array([[0, 4, 2], [1, 1, 3]]), np.array([[1, 0, 1], [0, 0, 1]])
    mask = mask if masked else np.ones((2, 3))

    def definition(logits):
        targets = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
        return -np.sum(mask * np.sum(targets * np.log(softmax(logits)), -1)) / mask.sum()

    hyper = dict(mask=jnp.asarray(mask) if masked else None, smoothing=smoothing)
    check(lambda x: losses.cross_entropy(x, jnp.asarray(labels), **hyper), definition, 3 * normal(2, 3, 5))


def test_nothing_to_predict_costs_nothing():
    logits, tokens = jnp.asarray(normal(2, 3, 5), jnp.bfloat16), jnp.full((2, 3), 7)
    assert losses.caption(logits, tokens, pad=7) == 0 and losses.masked_tokens(logits, tokens, jnp.zeros((2, 3))) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_labels(smoothing):
    rng = np.random.default_rng(0)
    logits, targets = 3 * rng.normal(size=(5, 4)), rng.dirichlet(np.ones(4), 5)

    def definition(x):
        smooth = (1 - smoothing) * targets + smoothing / 4
        shifted = x - x.max(-1, keepdims=True)
        return -np.mean(np.sum(smooth * (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))), -1))

    loss = losses.soft_cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32), smoothing=smoothing)
    assert float(loss) == pytest.approx(definition(logits), rel=1e-5)
    hard = np.array([0, 3, 1, 1, 2])
    both = [
        losses.soft_cross_entropy(logits, np.eye(4)[hard], smoothing=smoothing),
        losses.cross_entropy(logits, hard, smoothing=smoothing),
    ]
    assert float(both[0]) == pytest.approx(float(both[1]), rel=1e-5)
