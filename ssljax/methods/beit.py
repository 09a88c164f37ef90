"""BEiT (Bao et al. 2021, arXiv 2106.08254): predict the visual words of the masked patches, which a frozen tokenizer says."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.errors import UserError
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class BEiT(Method):
    """words = tokenizer(image); cross-entropy of head(encoder(image with blocks masked)) over the codebook at the masked (equation 3)."""

    encoder: nn.Module = module("the encoder, which sees mask tokens", name="vit", mask_token=True, position="relative_shared")
    tokenizer: str = arg("", "workdir of the first stage, a run of dvae; empty: words are patches' mean colours, 8 levels each")
    mask_ratio: float = arg(0.4, "share of the patches that is masked, in blocks")
    least: int = arg(16, "patches of the smallest masked block")

    def weights(self):
        return {"tokenizer": networks.checkpoint(self.tokenizer, "tokenizer", "tokens")[1]} if self.tokenizer else {}

    @property
    def codes(self):
        return networks.checkpoint(self.tokenizer, "tokenizer", "tokens")[0].codes if self.tokenizer else 512

    @property
    def parts(self):
        return {"encoder": self.encoder, "head": models.module_class("linear_head")(out=self.codes)}

    def init(self, rng, batch):
        params, stats = networks.init(self.parts, rng, batch["views"])
        return params, {"stats": stats, "frozen": networks.blank(self.weights())}

    def words(self, extra, images):
        """int32 (B, N), row by row."""
        size = self.encoder.patch_size
        count = (images.shape[1] // size) * (images.shape[2] // size)
        if not self.tokenizer:
            levels = jnp.clip((losses.patchify(images, size).reshape(len(images), count, -1, 3).mean(2) + 2) * 2, 0, 7).astype(jnp.int32)
            return levels @ jnp.array([64, 8, 1])
        method, _ = networks.checkpoint(self.tokenizer, "tokenizer", "tokens")
        frozen = extra["frozen"]["tokenizer"]
        words = method.tokens(frozen["params"], frozen["extra"], images)
        if words.shape[1] != count:
            raise UserError(
                f"config.method.tokenizer={self.tokenizer!r} says {words.shape[1]} words of an image, the encoder has {count} patches"
            )
        return words

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        images, size = batch["views"][:, 0], self.encoder.patch_size
        words = self.words(extra, images)  # (B, N)
        mask = networks.masks("block", r[0], images, size, masked=round(self.mask_ratio * words.shape[1]), least=self.least)["mask"]
        h, _ = models.apply(self.encoder, params["encoder"], {}, images, train=True, rng=r[1], mask=mask > 0)
        logits, _ = models.apply(self.parts["head"], params["head"], {}, h["patches"], train=True)  # (B, N, K)
        return {"logits": logits, "words": words, "mask": mask}, extra

    def objective(self, params, extra, encodings, batch, s):
        logits, words, mask = (encodings[k] for k in ("logits", "words", "mask"))
        loss = losses.masked_tokens(logits, words, mask)
        accuracy = losses.masked_mean((logits.argmax(-1) == words).astype(jnp.float32), mask)
        counts = jnp.zeros(self.codes).at[words.reshape(-1)].add(1.0)
        # What the commonest word of the batch would get right; the share of the codebook that the batch uses.
        return loss, (extra, {"accuracy": accuracy, "commonest_word": counts.max() / words.size, "codebook_use": (counts > 0).mean()})

    def embed(self, params, extra, batch):
        return networks.features(self.encoder, params, extra["stats"], batch["image"])
