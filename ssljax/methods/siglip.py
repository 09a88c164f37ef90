"""SigLIP (Zhai et al. 2023): every image-text pair of the batch is a binary question, match or not."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class SigLIP(Method):
    """x = normalise(W_i image_tower(image)); y = normalise(W_t text_tower(text)); sigmoid loss (Algorithm 1)."""

    encoder: nn.Module = module("the image tower", name="vit", pool="map", class_token=False)
    text: nn.Module = module("the text tower", name="text")
    out: int = arg(768, "width of the shared embedding")
    init_temperature: float = arg(10.0, "logit scale at the start; its logarithm is learned")
    init_bias: float = arg(-10.0, "logit bias at the start; learned")

    def init(self, rng, batch):
        r = jax.random.split(rng, 4)
        towers, stats, kernels = {}, {}, {}
        for i, (name, tower, x) in enumerate((("image", self.encoder, batch["views"][:, 0]), ("text", self.text, batch["text"]))):
            towers[name], stats[name] = models.init(tower, r[i], x, train=False)
            h, _ = models.apply(tower, towers[name], stats[name], x, train=False)
            shape = (h["pooled"].shape[-1], self.out)
            kernels[name] = {"kernel": nn.initializers.xavier_uniform()(r[2 + i], shape)}
        scale = {"logit_scale": jnp.float32(math.log(self.init_temperature)), "logit_bias": jnp.float32(self.init_bias)}
        return {"encoder": towers["image"], "text": towers["text"], "projection": kernels, **scale}, {"stats": stats}

    def _tower(self, name, tower, params, stats, x, train, rng=None):
        h, stats = models.apply(tower, params[{"image": "encoder"}.get(name, name)], stats[name], x, train=train, rng=rng)
        z = h["pooled"].astype(jnp.float32) @ params["projection"][name]["kernel"]
        return h["pooled"], losses.normalise(z), stats

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        _, x, image = self._tower("image", self.encoder, params, extra["stats"], batch["views"][:, 0], True, r[0])
        _, y, text = self._tower("text", self.text, params, extra["stats"], batch["text"], True, r[1])
        return {"image": x, "text": y}, {**extra, "stats": {"image": image, "text": text}}

    def objective(self, params, extra, encodings, batch, s):
        scale = jnp.exp(params["logit_scale"])
        loss = losses.siglip(encodings["image"], encodings["text"], scale, params["logit_bias"])
        return loss, (extra, {"logit_scale": scale, "logit_bias": params["logit_bias"]})

    def embed(self, params, extra, batch):
        out = {}
        if "image" in batch:
            features, x, _ = self._tower("image", self.encoder, params, extra["stats"], batch["image"], False)
            out |= {"features": features, "image_embedding": x}
        if "text" in batch:
            _, out["text_embedding"], _ = self._tower("text", self.text, params, extra["stats"], batch["text"], False)
        return out
