"""MMCR (Yerxa et al. 2023, arXiv 2303.03307): the mean of an image's views is long, and over images these means fill the sphere."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class MMCR(Method):
    """z = unit projector(encoder(view)); loss = -the nuclear norm of the (B, D) means over views (section 3)."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP in front of the loss", name="mlp", hidden=8192, out=512, layers=3)
    compactness: float = arg(0.0, "the paper's lambda: weight of each image's own nuclear norm, kept small")

    def encode(self, params, extra, batch, rng, s):
        z, stats = networks.over_crops(self.parts, params, extra["stats"], networks.views_of(batch), rng=rng)
        return {"z": losses.normalise(z)}, {**extra, "stats": stats}  # (B, V, D)

    def objective(self, params, extra, encodings, batch, s):
        z = encodings["z"]
        loss = losses.mmcr(jnp.moveaxis(z, 1, 0), compactness=self.compactness)
        length = jnp.linalg.norm(z.mean(1), axis=-1).mean()  # 1: an image's views coincide
        return loss, (extra, {"centroid_length": length, "feature_std": losses.feature_std(z)})
