"""LiT and SigLiT (Zhai et al. 2021, arXiv 2111.07991; 2023): a text tower learns to read a locked image tower."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class LiT(Method):
    """x = normalise(locked tower's features); y = normalise(text_tower(text)); CLIP's loss, or the sigmoid one. The locked tower has no
    gradient, no moments: it lies in extra["frozen"]."""

    encoder: nn.Module = module("the image tower, where `tower` is empty: locked as it was made", name="vit")
    text: nn.Module = module("the text tower; a linear layer takes it to the width of the image's features", name="text", pool="last")
    tower: str = arg("", "workdir of the run whose features are locked, or of convert.py; empty: a random tower, a baseline")
    sigmoid: bool = arg(False, "SigLIP's loss with a bias (SigLiT), not the softmax")
    out: int = arg(0, "width of a linear layer that is learned on the locked features; 0: none, which the paper found as good at its scale")
    init_temperature: float = arg(0.1, "temperature at the start; the logarithm of its inverse, the logit scale, is learned")
    init_bias: float = arg(-10.0, "logit bias at the start of the sigmoid loss; learned")

    def weights(self):
        return networks.tower_weights(self.tower)

    def init(self, rng, batch):
        r = jax.random.split(rng, 3)
        text, _ = models.init(self.text, r[1], batch["text"], train=False)
        h, _ = models.apply(self.text, text, {}, batch["text"], train=False)
        params = {"text": text, "logit_scale": jnp.float32(math.log(1 / self.init_temperature))}
        params |= {"logit_bias": jnp.float32(self.init_bias)} if self.sigmoid else {}
        if self.tower:
            extra = {"frozen": networks.blank(self.weights())}
        else:
            encoder, stats = networks.init({"encoder": self.encoder}, r[0], batch["views"])
            extra = {"frozen": {"tower": {"params": encoder, "extra": {"stats": stats}}}}
        width = jax.eval_shape(self.locked, extra, batch["views"][:, 0])["features"].shape[-1]
        kernel, keys = nn.initializers.xavier_uniform(), jax.random.split(r[2])
        params["projection"] = kernel(keys[0], (h["pooled"].shape[-1], self.out or width))
        return params | ({"head": kernel(keys[1], (width, self.out))} if self.out else {}), extra

    def read(self, params, ids, train, rng=None):
        """Token ids (B, T) -> (B, D) of unit norm."""
        h, _ = models.apply(self.text, params["text"], {}, ids, train=train, rng=rng, tokens=False)
        return losses.normalise(h["pooled"].astype(jnp.float32) @ params["projection"])

    def locked(self, extra, images):
        """{"features": (B, D), ...} of the locked tower."""
        frozen = extra["frozen"]["tower"]
        if self.tower:
            method, _ = networks.checkpoint(self.tower, "tower", "embed")
            return method.embed(frozen["params"], frozen["extra"], {"image": images})
        return networks.features(self.encoder, frozen["params"], frozen["extra"]["stats"], images)

    def see(self, params, features):
        """Locked features (B, D) -> (B, D or out) of unit norm."""
        x = jax.lax.stop_gradient(features).astype(jnp.float32)
        return losses.normalise(x @ params["head"] if self.out else x)

    def encode(self, params, extra, batch, rng, s):
        x = self.see(params, self.locked(extra, batch["views"][:, 0])["features"])
        return {"image": x, "text": self.read(params, batch["text"], True, rng)}, extra

    def objective(self, params, extra, encodings, batch, s):
        scale, x, y = jnp.exp(params["logit_scale"]), encodings["image"], encodings["text"]
        loss = losses.siglip(x, y, scale, params["logit_bias"]) if self.sigmoid else losses.clip_softmax(x, y, scale)
        return loss, (extra, {"logit_scale": scale})

    def embed(self, params, extra, batch):
        out = {}
        if "image" in batch:
            features = self.locked(extra, batch["image"])["features"]
            out |= {"features": features, "image_embedding": self.see(params, features)}
        if "text" in batch:
            out["text_embedding"] = self.read(params, batch["text"], False)
        return out
