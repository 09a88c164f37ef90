"""Metric learning with labels (Wang et al. 2019, arXiv 1904.06627, multi-similarity; six older losses by name): classes lie apart."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method

# Each of the method's settings, embeddings (B, V, D) and labels (B,); the papers are in losses/metric.py.
LOSSES = {
    "contrastive": lambda m, z, y: losses.contrastive_by_label(*rows(z, y), negative_margin=m.margin),
    "triplet": lambda m, z, y: losses.triplet_by_label(*rows(z, y), margin=m.margin),
    "lifted_structure": lambda m, z, y: losses.lifted_structure(*rows(z, y), negative_margin=m.margin),
    "n_pair": lambda m, z, y: losses.n_pair(z[:, 0], z[:, 1], y, temperature=m.temperature),
    "nca": lambda m, z, y: losses.nca(*rows(z, y), temperature=m.temperature),
    "soft_nearest_neighbour": lambda m, z, y: losses.soft_nearest_neighbour(*rows(z, y), temperature=m.temperature),
    "multi_similarity": lambda m, z, y: losses.multi_similarity(*rows(z, y), alpha=m.alpha, beta=m.beta, base=m.base),
}


def rows(z, labels):
    """Views as further rows of their class: (B, V, D), (B,) -> (B V, D), (B V,)."""
    return models.flat_views(z), jnp.repeat(labels, z.shape[1])


@dataclasses.dataclass(frozen=True)
class Metric(Method):
    """z = normalise(projector(encoder(views))); one of LOSSES over all pairs of the batch. Distances are of directions, in [0, 2]."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("head in front of the loss; the papers' is linear", name="mlp", out=128, layers=1)
    loss_name: str = arg("multi_similarity", ", ".join(LOSSES), one_of=LOSSES)
    margin: float = arg(0.5, "margin of contrastive, triplet and lifted_structure")
    temperature: float = arg(0.1, "temperature of n_pair, nca and soft_nearest_neighbour")
    alpha: float = arg(2.0, "multi_similarity: sharpness towards positives")
    beta: float = arg(50.0, "multi_similarity: sharpness towards negatives")
    base: float = arg(0.5, "multi_similarity: the similarity around which pairs are weighed")

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"], rng=rng)
        return {"z": losses.normalise(out["projector"])}, {**extra, "stats": stats}  # (B, V, D)

    def objective(self, params, extra, encodings, batch, s):
        z, labels = encodings["z"], batch["label"]
        loss = LOSSES[self.loss_name](self, z, labels)
        near = losses.similarities(z[:, 0], z[:, 0]) - 4 * jnp.eye(len(z))
        return loss, (extra, {"recall_at_1": (labels[near.argmax(1)] == labels).mean()})  # among the batch's other images
