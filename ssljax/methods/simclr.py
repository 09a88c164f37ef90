"""SimCLR (Chen et al. 2020): two views of an image agree, those of other images do not."""

import dataclasses

import flax.linen as nn
import jax

from ssljax import losses, models
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class SimCLR(Method):
    """h = encoder(view); z = projector(h); NT-Xent over the 2B normalised z (Algorithm 1). Features are h."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP in front of the loss, thrown away afterwards", name="mlp", hidden=2048, out=128)
    temperature: float = arg(0.1, "temperature of the softmax over similarities")

    def init(self, rng, batch):
        r = jax.random.split(rng)
        encoder, stats = models.init(self.encoder, r[0], models.flat_views(batch["views"]), train=False)
        h, _ = models.apply(self.encoder, encoder, stats, models.flat_views(batch["views"]), train=False)
        projector, projector_stats = models.init(self.projector, r[1], h["pooled"], train=False)
        return {"encoder": encoder, "projector": projector}, {"stats": {"encoder": stats, "projector": projector_stats}}

    def encode(self, params, extra, batch, rng, s):
        stats = extra["stats"]
        x = models.flat_views(batch["views"])  # (2B, H, W, 3)
        h, encoder = models.apply(self.encoder, params["encoder"], stats["encoder"], x, train=True, rng=rng)
        z, projector = models.apply(self.projector, params["projector"], stats["projector"], h["pooled"], train=True)
        z = losses.normalise(z.reshape(-1, 2, z.shape[-1]))  # (B, 2, D)
        return {"z": z}, {**extra, "stats": {"encoder": encoder, "projector": projector}}

    def objective(self, params, extra, encodings, batch, s):
        z0, z1 = encodings["z"][:, 0], encodings["z"][:, 1]
        loss = losses.nt_xent(z0, z1, temperature=self.temperature)
        return loss, (extra, {"positive_similarity": (z0 * z1).sum(-1).mean()})

    def embed(self, params, extra, batch):
        h, _ = models.apply(self.encoder, params["encoder"], extra["stats"]["encoder"], batch["image"], train=False)
        return {"features": h["pooled"]}
