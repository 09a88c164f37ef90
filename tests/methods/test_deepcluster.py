"""DeepCluster's clustering ahead of every epoch, through the loop."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import config as configs
from ssljax import losses, trees
from ssljax.methods.deepcluster import _cluster
from ssljax.train import train
from tests.conftest import ROOT


def test_a_run_that_resumes_clusters_as_one_that_did_not_stop(tmp_path):
    """64 examples and a batch of 8: epochs begin at steps 0, 8 and 16; the run goes on at step 8, where it has to cluster again."""
    config = configs.shrink(configs.load(ROOT / "configs/deepcluster_resnet_scenes.py"))
    config.update(steps=18, mesh={"data": 4, "fsdp": 2, "tensor": 1})
    config.checkpoint.update(every=8, keep=3)
    whole = train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "8", tmp_path / "half" / "checkpoints" / "8")
    resumed = train(config, tmp_path / "half")
    assert trees.sha256(resumed["state"]) == trees.sha256(whole["state"])
    clusters = np.asarray(whole["state"].extra["clusters"])
    assert (clusters[:64] >= 0).all() and (clusters[64:] == -1).all()  # clustered, not as they were made
    assert len(set(clusters[:64])) > 8


@pytest.mark.quick
def test_clusters_weigh_alike_and_none_stays_empty():
    """Groups of 90, 9 and 1 rows far apart, five clusters: empty ones go beside the large, and each has the same weight in all."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.eye(3)[[0, 1, 2]] * 10, (90, 9, 1), axis=0) @ np.eye(3, 8)
    features = jnp.asarray(groups + 0.1 * rng.normal(size=groups.shape), jnp.float32)
    cluster, weights = _cluster(jax.random.PRNGKey(0), features, clusters=5, components=2, iterations=20)
    sizes = np.bincount(cluster, minlength=5)
    assert (sizes > 0).all()
    np.testing.assert_allclose(sizes * weights, 100 / 5, rtol=1e-5)
    for label in set(np.asarray(cluster)):
        assert len(set(np.repeat([0, 1, 2], (90, 9, 1))[np.asarray(cluster) == label])) == 1


@pytest.mark.quick
def test_k_means_finds_what_is_apart_and_leaves_the_unknown_out():
    rng = np.random.default_rng(0)
    centres = np.eye(4, 16)
    truth = rng.integers(0, 4, 200)
    z = losses.normalise(jnp.asarray(centres[truth] + 0.05 * rng.normal(size=(200, 16)), jnp.float32))
    known = jnp.arange(200) < 150
    start = losses.normalise(jnp.asarray(centres + 0.5 * rng.normal(size=centres.shape), jnp.float32))
    centroids, cluster = losses.spherical_kmeans(z, start, known=known)
    assert (np.asarray(cluster[150:]) == -1).all()
    np.testing.assert_array_equal(cluster[:150], truth[:150])
    want = [np.asarray(z)[:150][truth[:150] == k].mean(0) for k in range(4)]
    np.testing.assert_allclose(centroids, [w / np.linalg.norm(w) for w in want], atol=1e-6)


@pytest.mark.quick
def test_whitened_rows_have_even_directions():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4000, 6)) * [9, 5, 3, 1, 0.1, 0.01] + 7, jnp.float32)
    z = np.asarray(losses.whiten(x, 4))
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(z.T @ z / len(z) * 4, np.eye(4), atol=0.1)
