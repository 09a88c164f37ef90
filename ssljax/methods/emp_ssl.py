"""EMP-SSL (Tong et al. 2023, arXiv 2304.03977): many small crops of an image agree with their mean; over images they fill the space."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class EMPSSL(Method):
    """z = unit projector(encoder(crop)); loss = -invariance * mean cos(z, mean over crops) - mean coding rate of each crop number."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP in front of the loss", name="mlp", hidden=4096, out=1024)
    invariance: float = arg(200.0, "weight of the similarity to the mean over crops")
    eps: float = arg(0.2, "precision of the coding rate, not squared, as in the authors' code")

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"], rng=rng)
        return {"z": losses.normalise(out["projector"])}, {**extra, "stats": stats}  # (B, V, D)

    def objective(self, params, extra, encodings, batch, s):
        z = encodings["z"]
        loss = losses.emp_ssl(jnp.moveaxis(z, 1, 0), eps=self.eps, invariance=self.invariance)
        similarity = -losses.negative_cosine(z, z.mean(1, keepdims=True))
        return loss, (extra, {"mean_similarity": similarity, "feature_std": losses.feature_std(z)})
