"""Discrete VAE (Ramesh et al. 2021, arXiv 2102.12092, section 2.1): pictures as words of a codebook; BEiT's first stage."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import models, schedules
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class DVAE(Method):
    """q = softmax(logits(image)) at every place; z = Gumbel-softmax(q); |decoder(z codebook) - image|^2 + beta KL(q || uniform)."""

    encoder: nn.Module = module("an encoder whose last map has a place for every token", name="resnet", stages=(1, 1, 1), stem="small")
    decoder: nn.Module = module("from the map of code vectors to the picture", name="image_decoder")
    codes: int = arg(8192, "codes in the codebook")
    width: int = arg(128, "width of a code vector")
    temperature: float = arg(1.0, "Gumbel-softmax temperature at the start; falls by a cosine")
    temperature_final: float = arg(1 / 16, "Gumbel-softmax temperature at the end")
    kl_weight: float = arg(0.0, "beta, weight of the divergence from the uniform distribution; BEiT's tokenizer: 6.6")

    def schedules(self, run):
        return {"temperature": schedules.cosine(self.temperature, self.temperature_final, run.steps)}

    @property
    def head(self):
        return models.module_class("linear_head")(out=self.codes)

    def init(self, rng, batch):
        r = jax.random.split(rng, 4)
        images = batch["views"][:, 0]
        encoder, stats = models.init(self.encoder, r[0], images, train=False)
        h, _ = models.apply(self.encoder, encoder, stats, images, train=False)
        head, _ = models.init(self.head, r[1], h["patches"], train=False)
        codebook = jax.random.normal(r[2], (self.codes, self.width))
        decoder, own = models.init(
            self.decoder, r[3], self._map(h["patches"] @ jnp.zeros((h["patches"].shape[-1], self.width))), train=False
        )
        params = {"encoder": encoder, "head": head, "codebook": codebook, "decoder": decoder}
        return params, {"stats": {"encoder": stats, "decoder": own}}

    def _map(self, x):
        """(B, N, D) -> (B, side, side, D)."""
        side = round(x.shape[1] ** 0.5)
        return x.reshape(x.shape[0], side, side, x.shape[-1])

    def _logits(self, params, stats, images, train, rng=None):
        h, stats = models.apply(self.encoder, params["encoder"], stats["encoder"], images, train=train, rng=rng)
        return models.apply(self.head, params["head"], {}, h["patches"], train=train)[0], stats

    def tokens(self, params, extra, images):
        """Normalised images (B, H, W, 3) -> int32 (B, N), the likeliest code of every place."""
        return self._logits(params, extra["stats"], images, False)[0].argmax(-1).astype(jnp.int32)

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        logits, stats = self._logits(params, extra["stats"], batch["views"][:, 0], True, r[0])
        soft = jax.nn.softmax((logits + jax.random.gumbel(r[1], logits.shape)) / s["temperature"])  # (B, N, K)
        rebuilt, own = models.apply(
            self.decoder, params["decoder"], extra["stats"]["decoder"], self._map(soft @ params["codebook"]), train=True
        )
        return {"logits": logits, "rebuilt": rebuilt}, {**extra, "stats": {"encoder": stats, "decoder": own}}

    def objective(self, params, extra, encodings, batch, s):
        images, logits = batch["views"][:, 0], encodings["logits"]
        log_q = jax.nn.log_softmax(logits)
        divergence = (jnp.exp(log_q) * (log_q + jnp.log(self.codes))).sum(-1).mean()
        error = lambda x: jnp.square(x - images).mean()  # noqa: E731
        rebuild = error(encodings["rebuilt"])
        used = jnp.zeros(self.codes).at[logits.argmax(-1).reshape(-1)].max(1.0).mean()  # of this batch
        metrics = {"mean_fill_ratio": rebuild / error(images.mean((1, 2), keepdims=True)), "codebook_use": used, "divergence": divergence}
        return rebuild + self.kl_weight * divergence, (extra, metrics)

    def pictures(self, params, extra, batch, rng):
        encodings, _ = self.encode(params, extra, batch, rng, {"temperature": self.temperature_final})
        return {"reconstructions": {"original": batch["views"][:, 0], "reconstruction": encodings["rebuilt"]}}
