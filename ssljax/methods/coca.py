"""CoCa (Yu et al. 2022, arXiv 2205.01917): contrast pictures and texts, and write the text of a picture, with one set of towers."""

import dataclasses

import flax.linen as nn

from ssljax import losses, models, networks
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

    def init(self, rng, batch):
        params, stats = towers.init(self.encoder, self.text, rng, batch["views"][:, 0], batch["text"])
        h, _ = models.apply(self.encoder, params["encoder"], {}, batch["views"][:, 0], train=False)
        t, _ = models.apply(self.text, params["text"], {}, batch["text"], train=False)
        params["decoder"], _ = models.init(self.decoder, rng, t["tokens"], h["memory"], train=False)
        return params | towers.start_scale(self.init_temperature), {"stats": stats}

    def encode(self, params, extra, batch, rng, s):
        h, _ = models.apply(self.encoder, params["encoder"], {}, batch["views"][:, 0], train=True, rng=rng)
        t, _ = models.apply(self.text, params["text"], {}, batch["text"], train=True)
        logits, _ = models.apply(self.decoder, params["decoder"], {}, t["tokens"][:, :-1], h["memory"], train=True)
        return {"image": towers.unit(h), "text": towers.unit(t), "logits": logits}, extra  # (B, E), (B, E), (B, T - 1, V)

    def objective(self, params, extra, encodings, batch, s):
        scale = towers.scale(params, self.max_scale)
        clip = losses.clip_softmax(encodings["image"], encodings["text"], scale)
        words = batch["text"][:, 1:]
        caption = losses.caption(encodings["logits"], words, pad=0)
        right = networks.accuracy(encodings["logits"], words, words != 0)
        metrics = {"clip_loss": clip, "caption_loss": caption, "word_accuracy": right, "logit_scale": scale}
        return clip + self.caption_weight * caption, (extra, metrics)

    def embed(self, params, extra, batch):
        return towers.embed(self.encoder, self.text, params, extra["stats"], batch)
