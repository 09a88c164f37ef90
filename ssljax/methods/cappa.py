"""Cap and CapPa (Tschannen et al. 2023, arXiv 2306.07915): an image encoder that learns by having its captions written."""

import dataclasses

import flax.linen as nn
import jax

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models import towers


@dataclasses.dataclass(frozen=True)
class CapPa(Method):
    """Cross-entropy of every word by a decoder that looks at the picture's patches: after the words before it (Cap), or, for a share
    `parallel` of the batch, after none, every word read as the mask token and seen by all (CapPa, section 3). Padding is id 0, the last
    id is the start of a text and the mask token."""

    encoder: nn.Module = module("the encoder, whose patches the decoder looks at", name="vit", pool="map", class_token=False)
    text: nn.Module = module("the decoder; its memory_width is the encoder's width", name="text", cross=True, depth=6, pool="last")
    parallel: float = arg(0.75, "share of the batch whose words are predicted all at once; 0: Cap")

    def init(self, rng, batch):
        params, stats = towers.init_captioner(self.encoder, self.text, rng, batch["views"][:, 0], batch["text"])
        return params, {"stats": stats}

    def encode(self, params, extra, batch, rng, s):
        r, ids, special = jax.random.split(rng, 3), batch["text"], self.text.vocab_size - 1
        h, stats = models.apply(self.encoder, params["encoder"], extra["stats"]["encoder"], batch["views"][:, 0], train=True, rng=r[0])
        read, seen, at_once = networks.partly_at_once(r[1], ids, special, self.parallel)
        logits = towers.next_words(self.text, params["text"], read, h["patches"], valid=seen, train=True, rng=r[2])
        return {"logits": logits, "at_once": at_once}, {**extra, "stats": {**extra["stats"], "encoder": stats}}

    def objective(self, params, extra, encodings, batch, s):
        logits, ids = encodings["logits"], batch["text"]
        one_by_one = (ids != 0) & ~encodings["at_once"][:, None]
        return losses.caption(logits, ids), (extra, {"word_accuracy": networks.accuracy(logits, ids, one_by_one)})

    def writer(self, params, extra, images):
        """A `decode.Writer` of the captions of normalised images (B, H, W, 3)."""
        return towers.writer(self.encoder, self.text, params, params["text"], extra["stats"], images)
