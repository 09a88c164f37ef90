"""Colourisation (Zhang et al. 2016, arXiv 1603.08511): from the lightness of a picture, the colour of every place, as one of many bins."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.augment import lab
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class Colorization(Method):
    """Cross-entropy of head(encoder(L)) over the bins of (a, b), weighted so that rare colours count (equations 2 to 4).

    The encoder takes the lightness three times over, so that it can be any. The bins' frequencies, smoothed towards uniform, are an average
    over past batches, in `extra`; the paper counts ImageNet's beforehand."""

    encoder: nn.Module = module("the encoder, which sees lightness alone", name="resnet")
    step: int = arg(10, "side of a bin of colour")
    uniform: float = arg(0.5, "share of the uniform distribution that the bins' frequencies are mixed with")
    momentum: float = arg(0.99, "of the frequencies' average")
    mean: tuple = arg((0.5, 0.5, 0.5), "config.data.mean, to undo it")
    std: tuple = arg((0.25, 0.25, 0.25), "config.data.std, to undo it")

    @property
    def centres(self):
        return lab.colour_bins(self.step)

    @property
    def head(self):
        return models.module_class("linear_head")(out=len(self.centres))

    def split(self, images):
        """Normalised images -> lightness as a picture (B, H, W, 3), about [-1, 1]; (a, b) (B, H, W, 2)."""
        values = lab.rgb_to_lab(images * jnp.asarray(self.std) + jnp.asarray(self.mean))
        return jnp.repeat(values[..., :1] / 50.0 - 1.0, 3, axis=-1), values[..., 1:]

    def init(self, rng, batch):
        r = jax.random.split(rng)
        light, _ = self.split(batch["views"][:, 0])
        encoder, stats = models.init(self.encoder, r[0], light, train=False)
        h, _ = models.apply(self.encoder, encoder, stats, light, train=False)
        head, _ = models.init(self.head, r[1], h["patches"], train=False)
        count = len(self.centres)
        return {"encoder": encoder, "head": head}, {"stats": {"encoder": stats}, "frequency": jnp.full(count, 1.0 / count, jnp.float32)}

    def encode(self, params, extra, batch, rng, s):
        light, colour = self.split(batch["views"][:, 0])
        h, stats = models.apply(self.encoder, params["encoder"], extra["stats"]["encoder"], light, train=True, rng=rng)
        logits, _ = models.apply(self.head, params["head"], {}, h["patches"], train=True)  # (B, N, K)
        side = round(logits.shape[1] ** 0.5)
        colour = jax.image.resize(colour, (colour.shape[0], side, side, 2), "linear", antialias=True).reshape(*logits.shape[:2], 2)
        return {"logits": logits, "bins": lab.nearest_bin(colour, self.centres)}, {**extra, "stats": {"encoder": stats}}

    def objective(self, params, extra, encodings, batch, s):
        logits, bins = encodings["logits"], encodings["bins"]
        count = logits.shape[-1]
        seen = jax.nn.one_hot(bins, count).mean((0, 1))
        frequency = self.momentum * extra["frequency"] + (1 - self.momentum) * seen
        weight = 1.0 / ((1 - self.uniform) * frequency + self.uniform / count)
        weight = weight / (frequency * weight).sum()  # of mean 1 over the colours as they come
        loss = losses.cross_entropy(logits, bins, mask=weight[bins])
        centres = jnp.asarray(self.centres)
        # The mean of the colours that are expected, as they come: what the weights made of the bins is undone.
        mean, true = jax.nn.softmax(logits - jnp.log(weight)) @ centres, centres[bins]  # (B, N, 2)
        error = jnp.square(mean - true).mean() / jnp.square(true - true.mean((0, 1))).mean()
        metrics = {"accuracy": (logits.argmax(-1) == bins).mean(), "mean_colour_ratio": error}
        metrics["commonest_colour"] = seen.max()  # what the commonest colour everywhere would get right
        return loss, ({**extra, "frequency": frequency}, metrics)

    def embed(self, params, extra, batch):
        return networks.features(self.encoder, params, extra["stats"], self.split(batch["image"])[0])
