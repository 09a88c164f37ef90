"""DCL (Yeh et al. 2022, arXiv 2110.06848): SimCLR whose denominator leaves the positive out, so that small batches learn as well."""

import dataclasses

import flax.linen as nn

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class DCL(Method):
    """z = normalise(projector(encoder(views))); decoupled contrastive loss (equation 6), weighted with sigma (DCLW, equation 7)."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP in front of the loss, thrown away afterwards", name="mlp", hidden=2048, out=128)
    temperature: float = arg(0.1, "temperature of the softmax over similarities")
    sigma: float = arg(0.0, "temperature of DCLW's weights of the positives (the paper's: 0.5); 0: no weights, plain DCL")

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"], rng=rng)
        return {"z": losses.normalise(out["projector"])}, {**extra, "stats": stats}  # (B, 2, D)

    def objective(self, params, extra, encodings, batch, s):
        z0, z1 = encodings["z"][:, 0], encodings["z"][:, 1]
        loss = losses.dcl(z0, z1, temperature=self.temperature, sigma=self.sigma or None)
        return loss, (extra, {"positive_similarity": (z0 * z1).sum(-1).mean()})
