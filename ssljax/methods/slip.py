"""SLIP (Mu et al. 2021, arXiv 2112.12750): CLIP and SimCLR on one image tower."""

import dataclasses

import flax.linen as nn
import jax

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models import towers


@dataclasses.dataclass(frozen=True)
class SLIP(Method):
    """CLIP of the lightly cropped view and its text + ssl_weight NT-Xent of two augmented views (Algorithm 1).

    The batch has two groups: "views", one view for CLIP, and "augmented", two for SimCLR."""

    encoder: nn.Module = module("the image tower", name="vit", out=512)
    text: nn.Module = module("the text tower", name="text", causal=True, pool="eot", out=512)
    projector: nn.Module = module("SimCLR's head on the image tower's features", name="mlp", hidden=4096, out=256, layers=3)
    init_temperature: float = arg(0.07, "CLIP's temperature at the start; the logarithm of its inverse, the logit scale, is learned")
    max_scale: float = arg(100.0, "the logit scale is held at or below it")
    temperature: float = arg(0.1, "SimCLR's temperature")
    ssl_weight: float = arg(1.0, "weight of SimCLR's loss")

    def init(self, rng, batch):
        r = jax.random.split(rng)
        params, stats = towers.init(self.encoder, self.text, r[0], batch["views"][:, 0], batch["text"])
        h, _ = models.apply(self.encoder, params["encoder"], stats["encoder"], batch["views"][:, 0], train=False)
        params["projector"], stats["projector"] = models.init(self.projector, r[1], h["pooled"], train=False)
        return params | towers.start_scale(self.init_temperature), {"stats": stats}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        pairs, stats = towers.encode(self.encoder, self.text, params, extra["stats"], batch, r[0])
        parts = {"encoder": self.encoder, "projector": self.projector}
        out, stats = networks.forward(parts, params, {**extra["stats"], **stats}, batch["augmented"], rng=r[1])
        return {**pairs, "z": losses.normalise(out["projector"])}, {**extra, "stats": stats}  # (B, 2, D)

    def objective(self, params, extra, encodings, batch, s):
        scale = towers.scale(params, self.max_scale)
        clip = losses.clip_softmax(encodings["image"], encodings["text"], scale)
        simclr = losses.nt_xent(encodings["z"][:, 0], encodings["z"][:, 1], temperature=self.temperature)
        return clip + self.ssl_weight * simclr, (extra, {"clip_loss": clip, "simclr_loss": simclr, "logit_scale": scale})

    def embed(self, params, extra, batch):
        return towers.embed(self.encoder, self.text, params, extra["stats"], batch)
