"""FroSSL (Skean et al. 2024, arXiv 2310.02903): views agree, and the Frobenius norm of their covariance is small, its spectrum even."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class FroSSL(Method):
    """z = projector(encoder(view)); loss = sum over views of log |cov z|_F^2 + invariance * distance to the mean over views."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP in front of the loss", name="mlp", hidden=2048, out=1024, layers=3)
    invariance: float = arg(1.0, "weight of the distance between views")

    def encode(self, params, extra, batch, rng, s):
        z, stats = networks.over_crops(self.parts, params, extra["stats"], networks.views_of(batch), rng=rng)
        return {"z": z}, {**extra, "stats": stats}  # (B, V, D)

    def objective(self, params, extra, encodings, batch, s):
        z = encodings["z"]
        loss = losses.frossl(jnp.moveaxis(z, 1, 0), invariance=self.invariance)
        return loss, (extra, {"positive_similarity": -losses.negative_cosine(z[:, 0], z[:, 1]), "feature_std": losses.feature_std(z)})
