"""CoCa (Yu et al. 2022, arXiv 2205.01917): contrast pictures and texts, and write the text of a picture, with one set of towers."""

import dataclasses

import flax.linen as nn

from ssljax import decode, losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models import towers


@dataclasses.dataclass(frozen=True)
class CoCa(Method):
    """L = CLIP(first query, text's class token) + caption_weight CE of decoder(text tokens, other queries) (equations 3 to 5)."""

    encoder: nn.Module = module("the image tower, with pooled queries", name="vit", pool="queries", last_norm="pooled", out=512)
    text: nn.Module = module("the causal text tower", name="text", causal=True, class_token=True, last_norm="pooled", out=512)
    decoder: nn.Module = module("the multimodal decoder", name="caption_decoder")
    init_temperature: float = arg(0.07, "temperature at the start; the logarithm of its inverse, the logit scale, is learned")
    max_scale: float = arg(100.0, "the logit scale is held at or below it")
    caption_weight: float = arg(2.0, "weight of the captions' loss")
    start: int = arg(-1, "id that a text starts with, put in front where its tokenizer has not; -1: the last id")

    def init(self, rng, batch):
        params, stats = towers.init(self.encoder, self.text, rng, batch["views"][:, 0], batch["text"])
        h, _ = models.apply(self.encoder, params["encoder"], {}, batch["views"][:, 0], train=False)
        t, _ = models.apply(self.text, params["text"], {}, batch["text"], train=False)
        params["decoder"], _ = models.init(self.decoder, rng, t["tokens"], h["memory"], train=False)
        return params | towers.start_scale(self.init_temperature), {"stats": stats}

    def encode(self, params, extra, batch, rng, s):
        h, _ = models.apply(self.encoder, params["encoder"], {}, batch["views"][:, 0], train=True, rng=rng)
        ids = networks.started(batch["text"], self._start)
        t, _ = models.apply(self.text, params["text"], {}, ids, train=True)
        logits, _ = models.apply(self.decoder, params["decoder"], {}, t["tokens"][:, :-1], h["memory"], train=True)
        return {"image": towers.unit(h), "text": towers.unit(t), "logits": logits, "words": ids[:, 1:]}, extra  # logits (B, T - 1, V)

    def objective(self, params, extra, encodings, batch, s):
        scale = towers.scale(params, self.max_scale)
        clip = losses.clip_softmax(encodings["image"], encodings["text"], scale)
        words = encodings["words"]
        caption = losses.caption(encodings["logits"], words, pad=0)
        right = networks.accuracy(encodings["logits"], words, words != 0)
        metrics = {"clip_loss": clip, "caption_loss": caption, "word_accuracy": right, "logit_scale": scale}
        return clip + self.caption_weight * caption, (extra, metrics)

    def embed(self, params, extra, batch):
        if "text" in batch:
            batch = {**batch, "text": networks.started(batch["text"], self._start)}
        return towers.embed(self.encoder, self.text, params, extra["stats"], batch)

    def writer(self, params, extra, images):
        """A `decode.Writer` of the captions of normalised images (B, H, W, 3)."""
        memory, length = models.apply(self.encoder, params["encoder"], {}, images, train=False)[0]["memory"], self.text.length

        def next_word(cache, ids, at, memory):
            t, own = decode.cached(self.text, params["text"], cache.get("text"), ids, at=at)
            logits, other = decode.cached(self.decoder, params["decoder"], cache.get("decoder"), t["tokens"], memory, decode=length)
            return logits[:, 0], {"text": own, "decoder": other}

        return decode.Writer(next_word, memory, self._start, length)

    @property
    def _start(self):
        return self.start % self.text.vocab_size
