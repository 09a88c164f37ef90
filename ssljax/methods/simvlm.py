"""SimVLM (Wang et al. 2021, arXiv 2108.10904): the picture and the first words of its text are a prefix; write the rest."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import decode, losses, models, networks
from ssljax.fields import module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class SimVLM(Method):
    """PrefixLM: cross-entropy of the words behind a prefix of random length, which see the prefix whole and the words before them
    (equation 4). The prefix, patches and words, is read by one encoder both ways; here patches by the image encoder and words by the
    decoder, which sees its prefix both ways. Padding is id 0, the last id starts a text."""

    encoder: nn.Module = module("the encoder of the picture", name="vit", pool="gap", class_token=False)
    text: nn.Module = module("the decoder; its memory_width is the encoder's width", name="text", cross=True, pool="last")

    def init(self, rng, batch):
        r, images = jax.random.split(rng), batch["views"][:, 0]
        encoder, stats = models.init(self.encoder, r[0], images, train=False)
        h, _ = models.apply(self.encoder, encoder, stats, images, train=False)
        text, _ = models.init(self.text, r[1], batch["text"], train=False, memory=h["patches"])
        return {"encoder": encoder, "text": text}, {"stats": {"encoder": stats, "text": {}}}

    def read(self, params, ids, memory, valid, train, rng=None):
        """Logits (B, T, V) of the next token after ids (B, T). valid: bool (B, T, T), which sees which."""
        t, _ = models.apply(self.text, params["text"], {}, ids, train=train, rng=rng, valid=valid, memory=memory)
        return t["tokens"].astype(jnp.float32) @ params["text"]["token_embed"]["embedding"].T

    def encode(self, params, extra, batch, rng, s):
        r, ids = jax.random.split(rng, 3), batch["text"]
        h, stats = models.apply(self.encoder, params["encoder"], extra["stats"]["encoder"], batch["views"][:, 0], train=True, rng=r[0])
        count = (ids != 0).sum(-1)
        prefix = jnp.floor(jax.random.uniform(r[1], count.shape) * count).astype(jnp.int32)  # words of the prefix: 0 to all but one
        place = jnp.arange(ids.shape[1])
        seen = (place <= place[:, None]) | (place[None, None] <= prefix[:, None, None])  # the start token and the prefix, by all
        logits = self.read(params, networks.starts(ids, self.text.vocab_size - 1), h["patches"], seen, True, r[2])
        return {"logits": logits, "asked": (place >= prefix[:, None]) & (ids != 0)}, {
            **extra,
            "stats": {**extra["stats"], "encoder": stats},
        }

    def objective(self, params, extra, encodings, batch, s):
        logits, ids, asked = encodings["logits"], batch["text"], encodings["asked"]
        return losses.cross_entropy(logits, ids, mask=asked), (extra, networks.caption_metrics(logits, ids, asked))

    def writer(self, params, extra, images):
        """A `decode.Writer` of the captions of normalised images (B, H, W, 3)."""
        stats = extra["stats"]["encoder"]
        memory = models.apply(self.encoder, params["encoder"], stats, images, train=False)[0]["patches"]
        return decode.Writer(self.text, params["text"], memory, self.text.vocab_size - 1)
