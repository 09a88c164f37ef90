"""BERT (Devlin et al. 2018, arXiv 1810.04805): predict the masked tokens of a text, read both ways."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models.transformer import gelu


@dataclasses.dataclass(frozen=True)
class BERT(Method):
    """Of mask_ratio of the tokens 80 % become the mask token, 10 % another, 10 % stay; cross-entropy at these (section 3.1).

    The head is the paper's: linear, GELU, LayerNorm, and the token embedding transposed. The next-sentence objective needs pairs of
    sentences and is left out, as RoBERTa found it to do no good. Padding is id 0 and is not looked at; the last id is the mask token."""

    text: nn.Module = module("the encoder", name="text", norm="post", first_norm=True, last_norm="none", pool="first")
    mask_ratio: float = arg(0.15, "share of the tokens that is predicted")

    @property
    def encoder(self):
        return self.text

    def init(self, rng, batch):
        r, width = jax.random.split(rng), self.text.width
        text, _ = models.init(self.text, r[0], batch["text"], train=False)
        head = {"kernel": nn.initializers.xavier_uniform()(r[1], (width, width)), "bias": jnp.zeros(width)}
        head |= {"scale": jnp.ones(width), "shift": jnp.zeros(width), "vocabulary": jnp.zeros(self.text.vocab_size)}
        return {"text": text, "head": head}, {}

    def encode(self, params, extra, batch, rng, s):
        r, ids = jax.random.split(rng), batch["text"]
        read, mask = networks.masked_words(r[0], ids, self.mask_ratio, self.text.vocab_size)
        h, _ = models.apply(self.text, params["text"], {}, read, train=True, rng=r[1], valid=ids != 0)
        head = params["head"]
        x = gelu(h["tokens"].astype(jnp.float32) @ head["kernel"] + head["bias"])
        x = jax.nn.standardize(x, epsilon=1e-12) * head["scale"] + head["shift"]
        logits = x @ params["text"]["token_embed"]["embedding"].T + head["vocabulary"]  # (B, T, V)
        return {"logits": logits, "mask": mask}, extra

    def objective(self, params, extra, encodings, batch, s):
        logits, mask = encodings["logits"], encodings["mask"]
        loss = losses.masked_tokens(logits, batch["text"], mask)
        return loss, (extra, networks.said_right(logits, batch["text"], mask, self.text.vocab_size))

    def embed(self, params, extra, batch):
        return networks.text_features(self.text, params, batch["text"])
