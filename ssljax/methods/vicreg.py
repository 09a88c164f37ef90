"""VICReg (Bardes et al. 2022, arXiv 2105.04906): views agree, every dimension varies over the batch, and dimensions are not correlated."""

import dataclasses

import flax.linen as nn

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class VICReg(Method):
    """z = expander(encoder(view)); loss = lambda invariance + mu variance + nu covariance (equation 6, Algorithm 1)."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("the expander, a wide MLP in front of the loss", name="mlp", hidden=8192, out=8192, layers=3)
    invariance: float = arg(25.0, "the paper's lambda: weight of the squared distance of views")
    variance: float = arg(25.0, "the paper's mu: weight of the hinge on standard deviations")
    covariance: float = arg(1.0, "the paper's nu: weight of squared covariances")

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"], rng=rng)
        return {"z": out["projector"]}, {**extra, "stats": stats}  # (B, 2, D)

    def objective(self, params, extra, encodings, batch, s):
        z = encodings["z"]
        weights = dict(invariance=self.invariance, variance=self.variance, covariance=self.covariance)
        loss = losses.vicreg(z[:, 0], z[:, 1], **weights)
        return loss, (extra, {"variance_hinge": losses.variance_hinge(z), "feature_std": losses.feature_std(z)})
