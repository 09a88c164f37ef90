"""RotNet (Gidaris et al. 2018, arXiv 1803.07728): by how many quarter turns is the picture rotated?"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class RotNet(Method):
    """All four rotations of each image; cross-entropy of head(encoder(rotated)) over {0, 90, 180, 270} degrees (equations 1 and 2)."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    label_smoothing: float = arg(0.0, "share of a label that is spread over all four")

    @property
    def parts(self):
        return {"encoder": self.encoder, "head": models.module_class("linear_head")(out=4)}

    def encode(self, params, extra, batch, rng, s):
        images = batch["views"][:, 0]
        rotated = jnp.stack([jnp.rot90(images, turns, axes=(1, 2)) for turns in range(4)], axis=1)  # (B, 4, H, W, 3)
        out, stats = networks.forward(self.parts, params, extra["stats"], rotated, rng=rng)
        return {"logits": out["head"]}, {**extra, "stats": stats}  # (B, 4, 4)

    def objective(self, params, extra, encodings, batch, s):
        logits = encodings["logits"]
        turns = jnp.broadcast_to(jnp.arange(4), logits.shape[:2])
        loss = losses.cross_entropy(logits, turns, smoothing=self.label_smoothing)
        return loss, (extra, {"accuracy": (logits.argmax(-1) == turns).mean()})
