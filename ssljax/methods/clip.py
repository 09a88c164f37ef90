"""CLIP (Radford et al. 2021, arXiv 2103.00020): of a batch of images and texts, which belongs to which."""

import dataclasses

import flax.linen as nn

from ssljax import losses
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models import towers


@dataclasses.dataclass(frozen=True)
class CLIP(Method):
    """x = normalise(image_tower(image)); y = normalise(text_tower(text)); cross-entropy over rows and columns (figure 3)."""

    encoder: nn.Module = module("the image tower", name="vit", out=512)
    text: nn.Module = module("the text tower", name="text", causal=True, pool="eot", out=512)
    init_temperature: float = arg(0.07, "temperature at the start; the logarithm of its inverse, the logit scale, is learned")
    mask_ratio: float = arg(0.0, "share of the image's patches that is left out in training (FLIP, Li et al. 2022, arXiv 2212.00794)")
    max_scale: float = arg(100.0, "the logit scale is held at or below it")

    def init(self, rng, batch):
        params, stats = towers.init(self.encoder, self.text, rng, batch["views"][:, 0], batch["text"])
        return params | towers.start_scale(self.init_temperature), {"stats": stats}

    def encode(self, params, extra, batch, rng, s):
        encodings, stats = towers.encode(self.encoder, self.text, params, extra["stats"], batch, rng, mask_ratio=self.mask_ratio)
        return encodings, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        scale = towers.scale(params, self.max_scale)
        return losses.clip_softmax(encodings["image"], encodings["text"], scale), (extra, {"logit_scale": scale})

    def embed(self, params, extra, batch):
        return towers.embed(self.encoder, self.text, params, extra["stats"], batch)
