"""HCL (Robinson et al. 2021, arXiv 2010.04592): SimCLR whose negatives weigh more the harder they are, less those that may be positives."""

import dataclasses

import flax.linen as nn

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class HardNegatives(Method):
    """z = normalise(projector(encoder(views))); the debiased loss over negatives drawn in proportion to e^(beta similarity) (section 4)."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP in front of the loss, thrown away afterwards", name="mlp", hidden=512, out=128)
    temperature: float = arg(0.5, "temperature of the softmax over similarities")
    beta: float = arg(1.0, "how much hard negatives are preferred; 0: not at all")
    prior: float = arg(0.1, "tau+, the chance that another image is of the same class; 0: no correction")

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"], rng=rng)
        return {"z": losses.normalise(out["projector"])}, {**extra, "stats": stats}  # (B, 2, D)

    def objective(self, params, extra, encodings, batch, s):
        z0, z1 = encodings["z"][:, 0], encodings["z"][:, 1]
        loss = losses.hard_negative_nce(z0, z1, temperature=self.temperature, beta=self.beta, prior=self.prior)
        return loss, (extra, {"positive_similarity": (z0 * z1).sum(-1).mean()})
