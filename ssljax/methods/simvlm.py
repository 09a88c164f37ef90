"""SimVLM (Wang et al. 2021, arXiv 2108.10904): the picture and the first words of its text are a prefix; write the rest."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.fields import module
from ssljax.method import Method
from ssljax.models import towers


@dataclasses.dataclass(frozen=True)
class SimVLM(Method):
    """PrefixLM: cross-entropy of the words behind a prefix of random length, which see the prefix whole and the words before them
    (equation 4). The prefix, patches and words, is read by one encoder both ways; here patches by the image encoder and words by the
    decoder, which sees its prefix both ways. Padding is id 0, the last id starts a text."""

    encoder: nn.Module = module("the encoder of the picture", name="vit", pool="gap", class_token=False)
    text: nn.Module = module("the decoder; its memory_width is the encoder's width", name="text", cross=True, pool="last")

    def init(self, rng, batch):
        params, stats = towers.init_captioner(self.encoder, self.text, rng, batch["views"][:, 0], batch["text"])
        return params, {"stats": stats}

    def encode(self, params, extra, batch, rng, s):
        r, ids = jax.random.split(rng, 3), batch["text"]
        h, stats = models.apply(self.encoder, params["encoder"], extra["stats"]["encoder"], batch["views"][:, 0], train=True, rng=r[0])
        count = (ids != 0).sum(-1)
        prefix = jnp.floor(jax.random.uniform(r[1], count.shape) * count).astype(jnp.int32)  # words of the prefix: 0 to all but one
        place = jnp.arange(ids.shape[1])
        seen = (place <= place[:, None]) | (place[None, None] <= prefix[:, None, None])  # the start token and the prefix, by all
        read = networks.starts(ids, self.text.vocab_size - 1)
        logits = towers.next_words(self.text, params["text"], read, h["patches"], valid=seen, train=True, rng=r[2])
        return {"logits": logits, "asked": (place >= prefix[:, None]) & (ids != 0)}, {
            **extra,
            "stats": {**extra["stats"], "encoder": stats},
        }

    def objective(self, params, extra, encodings, batch, s):
        logits, ids, asked = encodings["logits"], batch["text"], encodings["asked"]
        return losses.cross_entropy(logits, ids, mask=asked), (extra, {"word_accuracy": networks.accuracy(logits, ids, asked)})

    def writer(self, params, extra, images):
        """A `decode.Writer` of the captions of normalised images (B, H, W, 3)."""
        return towers.writer(self.encoder, self.text, params, params["text"], extra["stats"], images)
