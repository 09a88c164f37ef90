"""DeepCluster (Caron et al. 2018, arXiv 1807.05520): k-means of all features ahead of an epoch, and in it these clusters as classes."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class DeepCluster(Method):
    """loss = cross entropy of head(encoder(view)) and the cluster of the image, every cluster with the same weight in all (section 3.2).

    Ahead of an epoch features are whitened and clustered anew, and the head, whose classes then mean something else, starts anew.
    """

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    examples: int = arg(1_281_167, "images of an epoch; those beyond are left out")
    clusters: int = arg(10_000, "clusters, and classes of the head")
    components: int = arg(256, "principal components of the features that are clustered")
    iterations: int = arg(20, "iterations of k-means")

    def init(self, rng, batch):
        r = jax.random.split(rng)
        params, stats = networks.init({"encoder": self.encoder}, r[0], batch["views"])
        out, _ = networks.forward({"encoder": self.encoder}, params, stats, batch["views"][:1], train=False)
        params["head"] = _head(r[1], out["encoder"]["pooled"].shape[-1], self.clusters)
        ids = jnp.arange(self.examples, dtype=jnp.int32)
        return params, {"stats": stats, "clusters": ids % self.clusters, "weights": jnp.ones(self.clusters)}  # until the first refresh

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward({"encoder": self.encoder}, params, extra["stats"], batch["views"], rng=rng)
        logits = out["encoder"]["pooled"].astype(jnp.float32) @ params["head"]["kernel"] + params["head"]["bias"]
        return {"logits": logits}, {**extra, "stats": stats}  # (B, V, K)

    def objective(self, params, extra, encodings, batch, s):
        logits = encodings["logits"]
        cluster = extra["clusters"].at[batch["id"]].get(mode="fill", fill_value=-1)[:, None]  # (B, 1)
        weight = jnp.where(cluster < 0, 0.0, extra["weights"][cluster])
        errors = jax.vmap(jax.vmap(losses.cross_entropy))(logits, jnp.broadcast_to(cluster, logits.shape[:2]))
        loss = jnp.mean(errors * weight)
        accuracy = losses.masked_mean((logits.argmax(-1) == cluster).astype(jnp.float32).mean(1), cluster[:, 0] >= 0)
        return loss, (extra, {"cluster_accuracy": accuracy})

    def refresh(self, state, rows):
        key = jax.random.split(jax.random.fold_in(jnp.asarray(jax.device_get(state.rng)), int(state.step)))
        settings = dict(clusters=self.clusters, components=self.components, iterations=self.iterations)
        clusters, weights = _cluster(key[0], jnp.asarray(rows["features"]), **settings)
        placed = jnp.full(self.examples, -1, jnp.int32).at[rows["id"]].set(clusters, mode="drop")
        params = {**state.params, "head": _head(key[1], rows["features"].shape[1], self.clusters)}
        return dataclasses.replace(state, params=params, extra={**state.extra, "clusters": placed, "weights": weights})


@functools.partial(jax.jit, static_argnames=("clusters", "components", "iterations"))
def _cluster(key, features, *, clusters, components, iterations):
    """Features (N, D) -> cluster int32 (N,), weights (K,): the inverse of their sizes, 1 on average over the images."""
    z = losses.whiten(features, components)
    start = z[jax.random.permutation(key, len(z))[:clusters]]
    _, cluster = losses.spherical_kmeans(z, start, iterations=iterations, split=1 / 1024)
    sizes = jnp.bincount(cluster, length=clusters)
    return cluster, len(z) / jnp.maximum(sizes * jnp.sum(sizes > 0), 1).astype(jnp.float32)


def _head(rng, width, clusters):
    """A fresh linear layer, as the authors make it."""
    return {"kernel": 0.01 * jax.random.normal(rng, (width, clusters)), "bias": jnp.zeros(clusters)}
