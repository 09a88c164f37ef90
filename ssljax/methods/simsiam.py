"""SimSiam (Chen and He 2021, arXiv 2011.10566): a predictor and a stopped gradient are all that keeps two views from collapsing."""

import dataclasses

import flax.linen as nn

from ssljax import losses, networks
from ssljax.fields import module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class SimSiam(Method):
    """z = projector(encoder(view)); p = predictor(z); loss = -cos(p, the other view's z) / 2, both ways, z constant (Algorithm 1)."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP whose output is normalised over the batch", name="mlp", hidden=2048, out=2048, layers=3,
                                  last_norm=True, last_affine="none")  # fmt: skip
    predictor: nn.Module = module("MLP with a bottleneck", name="mlp", hidden=512, out=2048)

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"], rng=rng)
        return {"p": out["predictor"], "z": out["projector"]}, {**extra, "stats": stats}  # (B, 2, D) each

    def objective(self, params, extra, encodings, batch, s):
        p, z = encodings["p"], encodings["z"]
        loss = losses.simsiam(p[:, 0], p[:, 1], z[:, 0], z[:, 1])
        return loss, (extra, {"target_similarity": -loss, "feature_std": losses.feature_std(z)})
