"""DeepCluster-v2 (Caron et al. 2020, arXiv 2006.09882, appendix): crops predict the cluster that k-means puts their image into."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, networks, trees
from ssljax.errors import UserError
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class DeepClusterV2(Method):
    """z = unit projector(encoder(crop)); CE(z . centroids / temperature, cluster of the image), mean over several clusterings.

    A memory keeps each image's z as it was last seen, so clustering takes no pass over the data: it runs inside the step, where the
    schedule "cluster" is 1. Clustering h is of view h modulo their number. An image that no clustering has seen takes the centroid that is
    nearest to it now.
    """

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP in front of the centroids", name="mlp", hidden=2048, out=128)
    examples: int = arg(1_281_167, "images that the memory has room for, at least those of an epoch")
    clusters: int = arg(3000, "clusters of each clustering")
    clusterings: int = arg(3, "clusterings, each with a loss of its own")
    iterations: int = arg(10, "iterations of k-means")
    temperature: float = arg(0.1, "temperature of the softmax over centroids")

    def schedules(self, run):
        if run.examples > self.examples:
            raise UserError(f"config.method.examples={self.examples}: the memory has no room for the {run.examples} examples of an epoch")
        every = max(run.examples // run.batch, 1)
        return {"cluster": lambda step: (step % every == 0).astype(jnp.float32)}

    def init(self, rng, batch):
        r, views, width = jax.random.split(rng), batch["views"].shape[1], self.projector.out
        params, stats = networks.init(self.parts, r[0], batch["views"])
        centroids = networks.directions(r[1], self.clusterings * self.clusters, width).reshape(self.clusterings, self.clusters, width)
        assigned = jnp.full((self.clusterings, self.examples), -1, jnp.int32)
        return params, {"stats": stats, "memory": jnp.zeros((self.examples, views, width)), "centroids": centroids, "assigned": assigned}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        z, stats = networks.over_crops(self.parts, params, extra["stats"], networks.views_of(batch), rng=r[0])  # (B, V + L, D)
        return {"z": losses.normalise(z), "key": jnp.tile(r[1], (len(z), 1))}, {**extra, "stats": stats}

    def _cluster(self, key, memory):
        """memory: Moved -> centroids (H, K, D), clusters int32 (H, N); k-means starts from images of the memory."""
        memory = memory.written()
        known, found = jnp.any(memory != 0, axis=(1, 2)), []
        for h, own in enumerate(jax.random.split(key, self.clusterings)):
            z = memory[:, h % memory.shape[1]]
            start = jnp.argsort(jax.random.uniform(own, known.shape) + ~known)[: self.clusters]
            found.append(losses.spherical_kmeans(z, z[start], iterations=self.iterations, known=known))
        return tuple(jnp.stack(x) for x in zip(*found, strict=True))

    def objective(self, params, extra, encodings, batch, s):
        z, ids, views = encodings["z"], batch["id"], batch["views"].shape[1]
        memory = trees.Moved(extra["memory"], ids, jax.lax.stop_gradient(z[:, :views]))
        as_it_is = lambda *_: (extra["centroids"], extra["assigned"])  # noqa: E731
        centroids, assigned = jax.lax.cond(s["cluster"] > 0, self._cluster, as_it_is, encodings["key"][0], memory)
        scores = jax.vmap(losses.cosines, in_axes=(None, 0))(z, centroids)  # (H, B, V + L, K)
        own = assigned.at[:, ids].get(mode="fill", fill_value=-1)  # (H, B)
        now = jnp.stack([scores[h, :, h % views].argmax(-1) for h in range(self.clusterings)])
        target = jnp.where(own < 0, now, own)
        loss = losses.deepcluster_v2(jnp.moveaxis(scores, 2, 1), target, temperature=self.temperature)
        usage = losses.entropy_of_mean(scores / self.temperature)
        agreement = jnp.mean(jnp.where(own < 0, 0.0, own == now)) / jnp.maximum(jnp.mean(own >= 0), 1e-6)
        extra = {**extra, "memory": memory, "centroids": centroids, "assigned": assigned}
        return loss, (extra, {"prototype_entropy": usage, "cluster_agreement": agreement, "feature_std": losses.feature_std(z)})
