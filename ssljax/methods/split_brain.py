"""Split-brain autoencoder (Zhang et al. 2017, arXiv 1611.09842): one half of the network sees lightness, the other colour; each predicts
what the other sees."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models
from ssljax.augment import lab
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class SplitBrain(Method):
    """L = CE(F1(lightness), bins of colour) + CE(F2(colour), bins of lightness) (equations 2 and 3); features are both halves'."""

    encoder: nn.Module = module("each of the two halves", name="resnet")
    step: int = arg(10, "side of a bin of colour")
    levels: int = arg(50, "bins of lightness")
    mean: tuple = arg((0.5, 0.5, 0.5), "config.data.mean, to undo it")
    std: tuple = arg((0.25, 0.25, 0.25), "config.data.std, to undo it")

    @property
    def heads(self):
        head = models.module_class("linear_head")
        return {"lightness": head(out=len(lab.colour_bins(self.step))), "colour": head(out=self.levels)}

    def split(self, images):
        """Normalised images -> {"lightness": (B, H, W, 3), "colour": (B, H, W, 3)} as pictures about [-1, 1]; Lab (B, H, W, 3)."""
        values = lab.rgb_to_lab(images * jnp.asarray(self.std) + jnp.asarray(self.mean))
        light = jnp.repeat(values[..., :1] / 50.0 - 1.0, 3, axis=-1)
        colour = jnp.concatenate([values[..., 1:] / 60.0, jnp.zeros_like(values[..., :1])], axis=-1)
        return {"lightness": light, "colour": colour}, values

    def init(self, rng, batch):
        seen, _ = self.split(batch["views"][:, 0])
        encoders, heads, stats = {}, {}, {}
        for key, (name, x) in zip(jax.random.split(rng, 2), seen.items(), strict=True):
            r = jax.random.split(key)
            encoders[name], stats[name] = models.init(self.encoder, r[0], x, train=False)
            h, _ = models.apply(self.encoder, encoders[name], stats[name], x, train=False)
            heads[name], _ = models.init(self.heads[name], r[1], h["patches"], train=False)
        return {"encoder": encoders, "head": heads}, {"stats": {"encoder": stats}}

    def encode(self, params, extra, batch, rng, s):
        seen, values = self.split(batch["views"][:, 0])
        logits, stats = {}, {}
        for key, (name, x) in zip(jax.random.split(rng, 2), seen.items(), strict=True):
            h, stats[name] = models.apply(self.encoder, params["encoder"][name], extra["stats"]["encoder"][name], x, train=True, rng=key)
            logits[name], _ = models.apply(self.heads[name], params["head"][name], {}, h["patches"], train=True)  # (B, N, K)
        batch_size, count = logits["colour"].shape[:2]
        side = round(count**0.5)
        small = jax.image.resize(values, (batch_size, side, side, 3), "linear", antialias=True).reshape(batch_size, count, 3)
        bins = {"lightness": lab.nearest_bin(small[..., 1:], lab.colour_bins(self.step))}
        bins["colour"] = jnp.clip(small[..., 0] / 100.0 * self.levels, 0, self.levels - 1).astype(jnp.int32)
        return {"logits": logits, "bins": bins}, {**extra, "stats": {"encoder": stats}}

    def objective(self, params, extra, encodings, batch, s):
        logits, bins = encodings["logits"], encodings["bins"]
        loss = sum(losses.cross_entropy(logits[name], bins[name]) for name in logits)
        right = {f"{name}_accuracy": (logits[name].argmax(-1) == bins[name]).mean() for name in logits}
        return loss, (extra, right)

    def embed(self, params, extra, batch):
        seen, _ = self.split(batch["image"])
        stats = extra["stats"]["encoder"]
        halves = [models.apply(self.encoder, params["encoder"][n], stats[n], x, train=False)[0]["pooled"] for n, x in seen.items()]
        return {"features": jnp.concatenate(halves, axis=-1)}
