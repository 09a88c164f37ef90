"""Denoising autoencoder (Vincent et al. 2008, doi 10.1145/1390156.1390294): the clean picture from one with pixels lost and noise added."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class Denoising(Method):
    """|decoder(encoder(corrupted)) - image|^2, the mean over all pixels."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    decoder: nn.Module = module("from the pooled vector to the picture, thrown away afterwards", name="image_decoder")
    noise: float = arg(0.3, "standard deviation of Gaussian noise, in units of the normalised image")
    lost: float = arg(0.3, "share of the pixels that become 0, the mean")

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng, 3)
        views = batch["views"][:, :1]
        kept = jax.random.bernoulli(r[0], 1 - self.lost, (*views.shape[:-1], 1))
        corrupted = kept * (views + self.noise * jax.random.normal(r[1], views.shape))
        out, stats = networks.forward(self.parts, params, extra["stats"], corrupted, rng=r[2])
        return {"rebuilt": out["decoder"][:, 0]}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        images = batch["views"][:, 0]
        error = lambda x: jnp.square(x - images).mean()  # noqa: E731
        loss = error(encodings["rebuilt"])
        return loss, (extra, {"mean_fill_ratio": loss / error(images.mean((1, 2), keepdims=True))})

    def pictures(self, params, extra, batch, rng):
        encodings, _ = self.encode(params, extra, batch, rng, {})
        return {"reconstructions": {"original": batch["views"][:, 0], "reconstruction": encodings["rebuilt"]}}
