"""Supervised classification: the cross-entropy of an encoder's linear layer; also what a converted encoder is evaluated through."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.errors import UserError
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class Supervised(Method):
    """loss = cross_entropy(encoder(view)["embedding"], label); encoder.out is the number of classes. Features are the pooled vector."""

    encoder: nn.Module = module("the encoder; its field out is the number of classes", name="vit")
    label_smoothing: float = arg(0.0, "share of a label that is spread over all classes")

    def init(self, rng, batch):
        params, stats = networks.init({"encoder": self.encoder}, rng, batch["views"])
        return params, {"stats": stats}

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward({"encoder": self.encoder}, params, extra["stats"], batch["views"][:, :1], rng=rng)
        h = out["encoder"]
        if "embedding" not in h or "label" not in batch:
            raise UserError("method supervised: config.method.encoder.out should be the number of classes, and the data have labels")
        return {"logits": h["embedding"][:, 0].astype(jnp.float32)}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        logits, labels = encodings["logits"], batch["label"]
        loss = losses.cross_entropy(logits, labels, smoothing=self.label_smoothing)
        return loss, (extra, {"accuracy": (logits.argmax(-1) == labels).mean()})

    def embed(self, params, extra, batch):
        h, _ = models.apply(self.encoder, params["encoder"], extra["stats"]["encoder"], batch["image"], train=False)
        return {"features": h["pooled"]} | ({"logits": h["embedding"]} if "embedding" in h else {})
