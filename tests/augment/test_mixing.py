"""Mixup and CutMix against the papers' equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ssljax.augment import mixing

pytestmark = pytest.mark.quick


def batch(size=6, shape=(10, 8, 3)):
    rng = np.random.default_rng(0)
    return rng.random((size, *shape)).astype(np.float32), np.eye(size, dtype=np.float32)


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("shape", [(10, 8, 3), (2, 10, 8, 3)])
def test_mixup_mixes_images_and_labels_alike(per_example, shape):
    x, labels = batch(shape=shape)
    images, soft = mixing.mixup(jax.random.key(1), x, labels, alpha=0.8, per_example=per_example)
    lam = np.float64(np.diag(soft))  # labels are the identity: the diagonal is what each kept of itself
    assert (len(np.unique(lam.round(5))) > 1) == per_example and (0 <= lam).all() and (lam <= 1).all()
    partner = np.roll(np.arange(6), 1)
    wide = lam.reshape(-1, *(1,) * len(shape))
    np.testing.assert_allclose(images, wide * x + (1 - wide) * x[partner], atol=1e-6)
    np.testing.assert_allclose(soft, lam[:, None] * labels + (1 - lam[:, None]) * labels[partner], atol=1e-6)
    assert images.dtype == jnp.float32 and soft.dtype == jnp.float32


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("shape", [(10, 8, 3), (2, 10, 8, 3)])
def test_cutmix_pastes_a_box_and_counts_what_it_kept(per_example, shape):
    x, labels = batch(shape=shape)
    images, soft = mixing.cutmix(jax.random.key(4), x, labels, alpha=1.0, per_example=per_example)
    own = (np.asarray(images) == x).all(-1)
    other = (np.asarray(images) == np.roll(x, 1, 0)).all(-1)
    assert (own != other).all() and 0 < own.mean() < 1
    own = own.reshape(6, -1, 10, 8)
    assert (own == own[:, :1]).all()  # the same box in every view
    for cut in ~own[:, 0]:
        if cut.any():
            rows, columns = np.where(cut.any(1))[0], np.where(cut.any(0))[0]
            assert cut[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    kept = own[:, 0].mean((1, 2))
    assert (len(np.unique(kept)) > 1) == per_example
    np.testing.assert_allclose(soft, kept[:, None] * labels + (1 - kept[:, None]) * np.roll(labels, 1, 0), atol=1e-6)


def test_boxes_are_algorithm_1s():
    rng = np.random.default_rng(3)
    draws, lam = rng.random((50, 2)).astype(np.float32), rng.random(50).astype(np.float32)
    got = np.stack(mixing.cut_box(jnp.asarray(draws), jnp.asarray(lam), 20, 30), 1)
    for (u, v), share, box in zip(draws, lam, got, strict=True):
        row, column, half = int(u * 20), int(v * 30), 0.5 * np.sqrt(1 - float(share))
        down, across = int(half * 20), int(half * 30)
        expected = max(row - down, 0), max(column - across, 0), min(row + down, 20), min(column + across, 30)
        np.testing.assert_array_equal(box, expected)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_lambda_is_beta(alpha):
    shares = np.asarray(mixing.share(jax.random.key(0), alpha, 2000, True))
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert len(np.unique(mixing.share(jax.random.key(0), alpha, 16, False))) == 1


def test_switch_between_the_two():
    x, labels = batch()
    images = jax.jit(jax.vmap(lambda k: mixing.mixup_or_cutmix(k, x, labels)[0]))(jax.random.split(jax.random.key(0), 60))
    images = np.asarray(images)
    pasted = ((images == x) | (images == np.roll(x, 1, 0))).all((1, 2, 3, 4))
    assert 18 <= pasted.sum() <= 42
