"""SimCLR (Chen et al. 2020, arXiv 2002.05709): two views of an image agree, those of other images do not."""

import dataclasses

import flax.linen as nn

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class SimCLR(Method):
    """h = encoder(view); z = projector(h); NT-Xent over the 2B normalised z (Algorithm 1). Features are h."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP in front of the loss, thrown away afterwards", name="mlp", hidden=2048, out=128)
    temperature: float = arg(0.1, "temperature of the softmax over similarities")

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"], rng=rng)
        return {"z": losses.normalise(out["projector"])}, {**extra, "stats": stats}  # (B, 2, D)

    def objective(self, params, extra, encodings, batch, s):
        z0, z1 = encodings["z"][:, 0], encodings["z"][:, 1]
        loss = losses.nt_xent(z0, z1, temperature=self.temperature)
        return loss, (extra, {"positive_similarity": (z0 * z1).sum(-1).mean()})
