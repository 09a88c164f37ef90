"""UniCL (Yang et al. 2022, arXiv 2204.03610): pictures, texts and labels in one space; texts of the same label match as well."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models import towers


@dataclasses.dataclass(frozen=True)
class UniCL(Method):
    """Cross-entropy over rows and columns, each spread over all pairs of one label (Algorithm 1). Pairs without a label stand alone."""

    encoder: nn.Module = module("the image tower", name="vit", out=512)
    text: nn.Module = module("the text tower", name="text", causal=True, pool="eot", out=512)
    init_temperature: float = arg(0.07, "temperature at the start; the logarithm of its inverse, the logit scale, is learned")
    max_scale: float = arg(100.0, "the logit scale is held at or below it")
    label_share: float = arg(1.0, "share of the examples, drawn at each step, that count as labelled; the others are pairs alone")

    def init(self, rng, batch):
        params, stats = towers.init(self.encoder, self.text, rng, batch["views"][:, 0], batch["text"])
        return params | towers.start_scale(self.init_temperature), {"stats": stats}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        encodings, stats = towers.encode(self.encoder, self.text, params, extra["stats"], batch, r[0])
        labelled = (jax.random.uniform(r[1], batch["label"].shape) < self.label_share) & (batch["label"] >= 0)
        return {**encodings, "label": jnp.where(labelled, batch["label"], -1)}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        scale = towers.scale(params, self.max_scale)
        alone = jnp.arange(len(encodings["label"])) + 2**30  # a label of its own, for pairs that have none (-1)
        labels = jnp.where(encodings["label"] < 0, alone, encodings["label"])
        return losses.unicl(encodings["image"], encodings["text"], labels, scale), (extra, {"logit_scale": scale})

    def embed(self, params, extra, batch):
        return towers.embed(self.encoder, self.text, params, extra["stats"], batch)
