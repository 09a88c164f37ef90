"""i-Mix (Lee et al. 2021, arXiv 2010.08887): mixed-up pictures, and the mixture of the pictures' own identities for a label."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, networks
from ssljax.augment import mixing
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class IMix(Method):
    """k = f(view 1); q = f(w view 0 + (1 - w) another's view 0); cross-entropy of q's similarities to all keys with the virtual labels
    w own + (1 - w) the other's (N-pair form, Algorithm 1). A logit is linear in the key, so the label is mixed by mixing keys."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP in front of the loss", name="mlp", hidden=2048, out=128)
    temperature: float = arg(0.2, "temperature of the softmax over similarities")
    alpha: float = arg(1.0, "w is drawn from Beta(alpha, alpha), for each image")

    def encode(self, params, extra, batch, rng, s):
        r, views = jax.random.split(rng), batch["views"]
        w = mixing.share(r[0], self.alpha, len(views), per_example=True)  # (B,)
        views = jnp.stack([mixing.mix(views[:, 0], w), views[:, 1]], axis=1)
        out, stats = networks.forward(self.parts, params, extra["stats"], views, rng=r[1])
        z = losses.normalise(out["projector"])  # (B, 2, D)
        return {"q": z[:, 0], "k": z[:, 1], "target": mixing.mix(z[:, 1], w)}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        q, k, target = encodings["q"], encodings["k"], encodings["target"]
        loss = losses.mixed_info_nce(q, k, target, temperature=self.temperature)
        return loss, (extra, {"positive_similarity": losses.rowwise(q, target).mean()})
