"""iGPT (Chen et al. 2020, "Generative Pretraining from Pixels", ICML): a picture is a sequence of palette colours; predict the next."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class IGPT(Method):
    """colours = nearest(palette, pixels of the picture at side x side); cross-entropy of the next colour (mask_ratio=0: autoregressive),
    or of the masked ones (BERT's objective). Features: the mean of the tokens behind the middle block, where the paper's probes are best.

    The palette starts as the RGB cube, levels^3 colours, and is moved by mini-batch k-means in the first palette_steps steps."""

    encoder: nn.Module = module("a transformer over colours", name="text", causal=True, pool="gap")
    side: int = arg(32, "side of the picture that is read, pixels")
    levels: int = arg(8, "levels of each channel that the palette starts from; 8: 9 bits")
    palette_steps: int = arg(500, "steps in which k-means moves the palette")
    mask_ratio: float = arg(0.0, "share of the pixels that is masked (the paper's BERT: 0.15); 0: predict the next pixel")
    layer: int = arg(0, "block behind which features are taken; 0: the middle one")

    def schedules(self, run):
        return {"palette_rate": lambda step: jnp.where(step < self.palette_steps, 1.0 / (1.0 + step.astype(jnp.float32)), 0.0)}

    @property
    def colours(self):
        return self.levels**3

    @property
    def tower(self):  # one more "colour": the start of the sequence, or what is masked
        return self.encoder.clone(vocab_size=self.colours + 1, length=self.side**2, causal=self.mask_ratio == 0)

    @property
    def head(self):
        return models.module_class("linear_head")(out=self.colours)

    def init(self, rng, batch):
        r = jax.random.split(rng)
        encoder, _ = models.init(self.tower, r[0], jnp.zeros((1, self.side**2), jnp.int32), train=False)
        head, _ = models.init(self.head, r[1], jnp.zeros((1, 1, self.encoder.width)), train=False)
        levels = jnp.linspace(-1.5, 1.5, self.levels)
        palette = jnp.stack(jnp.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
        return {"encoder": encoder, "head": head}, {"palette": palette}

    def read(self, images, palette):
        """Normalised images (B, H, W, 3) -> pixels (B, side^2, 3) and the palette's nearest int32 (B, side^2)."""
        small = jax.image.resize(images.astype(jnp.float32), (len(images), self.side, self.side, 3), "bilinear", antialias=True)
        pixels = small.reshape(len(images), -1, 3)
        distance = jnp.square(palette).sum(-1) - 2 * jnp.einsum("bnc,kc->bnk", pixels, palette, precision="highest")
        return pixels, distance.argmin(-1).astype(jnp.int32)

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        pixels, ids = self.read(batch["views"][:, 0], extra["palette"])
        if self.mask_ratio:
            mask = jax.random.uniform(r[0], ids.shape) < self.mask_ratio
            read = jnp.where(mask, self.colours, ids)
        else:
            mask = jnp.ones(ids.shape, bool)
            read = networks.starts(ids, self.colours)
        h, _ = models.apply(self.tower, params["encoder"], {}, read, train=True, rng=r[1])
        logits, _ = models.apply(self.head, params["head"], {}, h["tokens"], train=True)  # (B, N, K)
        return {"logits": logits, "ids": ids, "mask": mask, "pixels": pixels}, extra

    def objective(self, params, extra, encodings, batch, s):
        logits, ids, mask = (encodings[k] for k in ("logits", "ids", "mask"))
        loss = losses.masked_tokens(logits, ids, mask)
        flat, palette = ids.reshape(-1), extra["palette"]
        counts = jnp.zeros(self.colours).at[flat].add(1.0)[:, None]
        means = jnp.zeros_like(palette).at[flat].add(encodings["pixels"].reshape(-1, 3)) / jnp.maximum(counts, 1)
        extra = {**extra, "palette": jnp.where(counts > 0, palette + s["palette_rate"] * (means - palette), palette)}
        return loss, (extra, networks.said_right(logits, ids, mask, self.colours))

    def embed(self, params, extra, batch):
        _, ids = self.read(batch["image"], extra["palette"])
        h, _ = models.apply(self.tower, params["encoder"], {}, ids, train=False, layers=True)
        return {"features": h["layers"][(self.layer or (self.encoder.depth + 1) // 2) - 1].mean(1)}
