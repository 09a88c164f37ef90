"""SigLIP (Zhai et al. 2023, arXiv 2303.15343): every image-text pair of the batch is a binary question, match or not."""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp

from ssljax import losses
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models import towers


@dataclasses.dataclass(frozen=True)
class SigLIP(Method):
    """x = normalise(image_tower(image)); y = normalise(text_tower(text)); sigmoid loss (Algorithm 1)."""

    encoder: nn.Module = module("the image tower", name="vit", pool="map", class_token=False)
    text: nn.Module = module("the text tower", name="text", out=768, out_bias=True)
    init_temperature: float = arg(10.0, "logit scale at the start; its logarithm is learned")
    init_bias: float = arg(-10.0, "logit bias at the start; learned")

    def init(self, rng, batch):
        params, stats = towers.init(self.encoder, self.text, rng, batch["views"][:, 0], batch["text"])
        scale = {"logit_scale": jnp.float32(math.log(self.init_temperature)), "logit_bias": jnp.float32(self.init_bias)}
        return params | scale, {"stats": stats}

    def encode(self, params, extra, batch, rng, s):
        encodings, stats = towers.encode(self.encoder, self.text, params, extra["stats"], batch, rng)
        return encodings, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        scale = jnp.exp(params["logit_scale"])
        loss = losses.siglip(encodings["image"], encodings["text"], scale, params["logit_bias"])
        return loss, (extra, {"logit_scale": scale, "logit_bias": params["logit_bias"]})

    def embed(self, params, extra, batch):
        return towers.embed(self.encoder, self.text, params, extra["stats"], batch)
