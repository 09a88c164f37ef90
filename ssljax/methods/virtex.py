"""VirTex (Desai and Johnson 2020, arXiv 2006.06666): a convolutional network learns from captions written forwards and backwards."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import decode, losses, models, networks
from ssljax.fields import module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class VirTex(Method):
    """Cross-entropy of the next word by one decoder + that of the word before by another, both looking at the encoder's map, projected;
    they share the token embedding, which is the output layer as well (figure 3). Padding is id 0, the last id starts a text."""

    encoder: nn.Module = module("the encoder, whose last map the decoders look at", name="resnet")
    text: nn.Module = module("either decoder; its memory_width is the encoder's width", name="text", cross=True, causal=True, depth=1)

    def init(self, rng, batch):
        r, images = jax.random.split(rng, 3), batch["views"][:, 0]
        encoder, stats = models.init(self.encoder, r[0], images, train=False)
        h, _ = models.apply(self.encoder, encoder, stats, images, train=False)
        forth, back = (models.init(self.text, key, batch["text"], train=False, memory=h["patches"])[0] for key in r[1:])
        back = {name: leaf for name, leaf in back.items() if name != "token_embed"}
        return {"encoder": encoder, "text": forth, "backward": back}, {"stats": {"encoder": stats}}

    def read(self, params, ids, memory, train, rng=None):
        """Logits (B, T, V) of the next token after ids (B, T). params: a decoder's."""
        t, _ = models.apply(self.text, params, {}, ids, train=train, rng=rng, memory=memory)
        return t["tokens"].astype(jnp.float32) @ params["token_embed"]["embedding"].T

    def encode(self, params, extra, batch, rng, s):
        r, ids, special = jax.random.split(rng, 3), batch["text"], self.text.vocab_size - 1
        h, stats = models.apply(self.encoder, params["encoder"], extra["stats"]["encoder"], batch["views"][:, 0], train=True, rng=r[0])
        turned = backwards(ids)
        shared = {"token_embed": params["text"]["token_embed"]}
        logits = self.read(params["text"], networks.starts(ids, special), h["patches"], True, r[1])
        other = self.read(params["backward"] | shared, networks.starts(turned, special), h["patches"], True, r[2])
        return {"logits": logits, "backward": other, "turned": turned}, {**extra, "stats": {"encoder": stats}}

    def objective(self, params, extra, encodings, batch, s):
        ids, logits = batch["text"], encodings["logits"]
        forth, back = losses.caption(logits, ids), losses.caption(encodings["backward"], encodings["turned"])
        metrics = {"forward_loss": forth, "backward_loss": back, **networks.caption_metrics(logits, ids, ids != 0)}
        return forth + back, (extra, metrics)

    def writer(self, params, extra, images):
        """A `decode.Writer` of the captions of normalised images (B, H, W, 3)."""
        stats = extra["stats"]["encoder"]
        memory = models.apply(self.encoder, params["encoder"], stats, images, train=False)[0]["patches"]
        return decode.Writer(self.text, params["text"], memory, self.text.vocab_size - 1)


def backwards(ids):
    """Texts int (B, T), padded by 0 at the end, each with its words the other way round and the padding still at the end."""
    count, place = (ids != 0).sum(-1, keepdims=True), jnp.arange(ids.shape[-1])
    return jnp.where(place < count, jnp.take_along_axis(ids, jnp.maximum(count - 1 - place, 0), axis=-1), 0)
