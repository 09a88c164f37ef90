"""FILIP (Yao et al. 2021, arXiv 2111.07783): each patch finds its word, each word its patch, and pairs are told by the mean of these."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models import towers


@dataclasses.dataclass(frozen=True)
class FILIP(Method):
    """s(image, text) = mean over patches of the largest cosine to a word, and the reverse; CLIP's cross-entropy over these (equations 3
    to 5). Evaluators get the tokens and compare them so too."""

    encoder: nn.Module = module("the image tower", name="vit")
    text: nn.Module = module("the text tower; padding, id 0, is neither a word nor looked at", name="text", pool="gap")
    width: int = arg(256, "width in which patches and words are compared")
    init_temperature: float = arg(0.07, "temperature at the start; the logarithm of its inverse, the logit scale, is learned")
    max_scale: float = arg(100.0, "the logit scale is held at or below it")
    products: str = arg("float32", "dtype that patches and words are sent and multiplied in", one_of=("float32", "bfloat16"))

    def init(self, rng, batch):
        r = jax.random.split(rng, 3)
        params, stats, widths = towers.init_of_tokens(self.encoder, self.text, r[0], batch["views"][:, 0], batch["text"])
        for key, (tower, width) in zip(r[1:], widths.items(), strict=True):
            params[f"{tower}_projection"] = nn.initializers.xavier_uniform()(key, (width, self.width))
        return params | towers.start_scale(self.init_temperature), {"stats": stats}

    def _words(self, params, stats, ids, train, rng=None):
        t, stats = models.apply(self.text, params["text"], stats, ids, train=train, rng=rng, valid=ids != 0)
        return losses.normalise(t["tokens"].astype(jnp.float32) @ params["text_projection"]), stats  # (B, T, E)

    def _patches(self, params, stats, images, train, rng=None):
        h, stats = models.apply(self.encoder, params["encoder"], stats, images, train=train, rng=rng)
        return h, losses.normalise(h["patches"].astype(jnp.float32) @ params["image_projection"]), stats  # (B, N, E)

    def encode(self, params, extra, batch, rng, s):
        r, stats = jax.random.split(rng), extra["stats"]
        _, x, own = self._patches(params, stats["encoder"], batch["views"][:, 0], True, r[0])
        y, other = self._words(params, stats["text"], batch["text"], True, r[1])
        return {"patches": x, "words": y}, {**extra, "stats": {"encoder": own, "text": other}}

    def objective(self, params, extra, encodings, batch, s):
        scale = towers.scale(params, self.max_scale)
        patches, words = (encodings[name].astype(self.products) for name in ("patches", "words"))
        loss = losses.filip(patches, words, batch["text"] != 0, scale)
        return loss, (extra, {"logit_scale": scale})

    def embed(self, params, extra, batch):
        out = {}
        if "image" in batch:
            h, x, _ = self._patches(params, extra["stats"]["encoder"], batch["image"], False)
            out |= {"features": h["pooled"], "image_embedding": x}
        if "text" in batch:
            y, _ = self._words(params, extra["stats"]["text"], batch["text"], False)
            out["text_embedding"] = y * (batch["text"] != 0)[..., None]
        return out
