"""VirTex (Desai and Johnson 2020, arXiv 2006.06666): a convolutional network learns from captions written forwards and backwards."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.fields import module
from ssljax.method import Method
from ssljax.models import towers


@dataclasses.dataclass(frozen=True)
class VirTex(Method):
    """Cross-entropy of the next word by one decoder + that of the word before by another, both looking at the encoder's map, projected;
    they share the token embedding, which is the output layer as well (figure 3). Padding is id 0, the last id starts a text."""

    encoder: nn.Module = module("the encoder, whose last map the decoders look at", name="resnet")
    text: nn.Module = module("either decoder; its memory_width is the encoder's width", name="text", cross=True, causal=True, depth=1)

    def init(self, rng, batch):
        r, images = jax.random.split(rng), batch["views"][:, 0]
        params, stats = towers.init_captioner(self.encoder, self.text, r[0], images, batch["text"])
        back = towers.init_captioner(self.encoder, self.text, r[1], images, batch["text"])[0]["text"]
        return params | {"backward": {k: v for k, v in back.items() if k != "token_embed"}}, {"stats": stats}

    def encode(self, params, extra, batch, rng, s):
        r, ids, special = jax.random.split(rng, 3), batch["text"], self.text.vocab_size - 1
        h, stats = models.apply(self.encoder, params["encoder"], extra["stats"]["encoder"], batch["views"][:, 0], train=True, rng=r[0])
        turned = backwards(ids)
        shared = {"token_embed": params["text"]["token_embed"]}
        read = lambda p, ids, key: towers.next_words(self.text, p, networks.starts(ids, special), h["patches"], train=True, rng=key)  # noqa: E731
        logits, other = read(params["text"], ids, r[1]), read(params["backward"] | shared, turned, r[2])
        return {"logits": logits, "backward": other, "turned": turned}, {**extra, "stats": {**extra["stats"], "encoder": stats}}

    def objective(self, params, extra, encodings, batch, s):
        ids, logits = batch["text"], encodings["logits"]
        forth, back = losses.caption(logits, ids), losses.caption(encodings["backward"], encodings["turned"])
        metrics = {"forward_loss": forth, "backward_loss": back, "word_accuracy": networks.accuracy(logits, ids, ids != 0)}
        return forth + back, (extra, metrics)

    def writer(self, params, extra, images):
        """A `decode.Writer` of the captions of normalised images (B, H, W, 3)."""
        return towers.writer(self.encoder, self.text, params, params["text"], extra["stats"], images)


def backwards(ids):
    """Texts int (B, T), padded by 0 at the end, each with its words the other way round and the padding still at the end."""
    count, place = (ids != 0).sum(-1, keepdims=True), jnp.arange(ids.shape[-1])
    return jnp.where(place < count, jnp.take_along_axis(ids, jnp.maximum(count - 1 - place, 0), axis=-1), 0)
