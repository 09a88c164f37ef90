"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230): the cross-correlation of two views' features is pulled to the identity."""

import dataclasses

import flax.linen as nn

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class BarlowTwins(Method):
    """z = projector(encoder(view)); c: correlations of both views over the batch; sum (1 - c_ii)^2 + lambda sum c_ij^2 (Algorithm 1)."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP in front of the loss, wide", name="mlp", hidden=8192, out=8192, layers=3)
    off_diagonal: float = arg(0.005, "the paper's lambda: weight of the correlations between dimensions")
    scale: float = arg(1.0, "factor of the loss")

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"], rng=rng)
        return {"z": out["projector"]}, {**extra, "stats": stats}  # (B, 2, D)

    def objective(self, params, extra, encodings, batch, s):
        z = encodings["z"]
        loss = losses.barlow_twins(z[:, 0], z[:, 1], off_diagonal=self.off_diagonal, scale=self.scale)
        return loss, (extra, {"positive_similarity": -losses.negative_cosine(z[:, 0], z[:, 1]), "feature_std": losses.feature_std(z)})
