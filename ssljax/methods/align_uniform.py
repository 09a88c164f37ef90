"""Alignment and uniformity (Wang and Isola 2020, arXiv 2005.10242): views of an image lie close, all images spread over the sphere."""

import dataclasses

import flax.linen as nn

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class AlignUniform(Method):
    """z = normalise(projector(encoder(views))); mean |z0 - z1|^power + weight log mean over pairs of images of exp(-t |z_i - z_j|^2)
    (Figure 5)."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("head in front of the loss; the paper's is linear", name="mlp", out=128, layers=1)
    power: float = arg(2.0, "alpha, power of the distance of two views")
    t: float = arg(2.0, "how sharply images repel each other")
    weight: float = arg(1.0, "weight of uniformity")

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"], rng=rng)
        return {"z": losses.normalise(out["projector"])}, {**extra, "stats": stats}  # (B, 2, D)

    def objective(self, params, extra, encodings, batch, s):
        z0, z1 = encodings["z"][:, 0], encodings["z"][:, 1]
        loss = losses.align_uniform(z0, z1, power=self.power, t=self.t, weight=self.weight)
        apart = losses.alignment(z0, z1, power=self.power)
        return loss, (extra, {"alignment": apart, "uniformity": (loss - apart) / self.weight})
