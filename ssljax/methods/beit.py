"""BEiT (Bao et al. 2021, arXiv 2106.08254; v2, arXiv 2208.06366): predict masked patches' visual words, which a frozen tokenizer says."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class BEiT(Method):
    """words = tokenizer(image); cross-entropy of head(encoder(image with blocks masked)) over the codebook at the masked (equation 3).

    BEiT: a tokenizer of dvae. BEiT v2: one of vqkd, and patch aggregation, which adds the same loss of a shallow head (equation 7)."""

    encoder: nn.Module = module("the encoder, which sees mask tokens", name="vit", mask_token=True, position="relative_shared")
    tokenizer: str = arg("", "workdir of the first stage, a run of dvae or vqkd; empty: words are patches' mean colours, 8 levels each")
    mask_ratio: float = arg(0.4, "share of the patches that is masked, in blocks")
    least: int = arg(16, "patches of the smallest masked block")
    aggregate: int = arg(0, "BEiT v2: the first so many blocks' patches, with the last block's class token, go to a second head; 0: none")
    aggregate_depth: int = arg(2, "blocks of that head")

    def weights(self):
        return networks.tokenizer_weights(self.tokenizer)

    @property
    def codes(self):
        return networks.codes(self.tokenizer)

    @property
    def parts(self):
        return {"encoder": self.encoder, "head": models.module_class("linear_head")(out=self.codes)}

    @property
    def shallow(self):
        same = {name: getattr(self.encoder, name) for name in ("heads", "mlp_dim", "activation", "norm_eps")}
        return Transformer(depth=self.aggregate_depth, **same)

    def init(self, rng, batch):
        params, stats = networks.init(self.parts, rng, batch["views"])
        if self.aggregate:
            x = jnp.zeros((1, 2, self.encoder.width))
            params["shallow"], _ = models.init(self.shallow, jax.random.fold_in(rng, 1), x, train=False)
        return params, {"stats": stats, "frozen": networks.blank(self.weights())}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        images, size = batch["views"][:, 0], self.encoder.patch_size
        words = networks.words(self.tokenizer, extra, images, size)  # (B, N)
        mask = networks.masks("block", r[0], images, size, masked=round(self.mask_ratio * words.shape[1]), least=self.least)["mask"]
        h, _ = models.apply(self.encoder, params["encoder"], {}, images, train=True, rng=r[1], mask=mask > 0, layers=self.aggregate > 0)
        head = lambda x: models.apply(self.parts["head"], params["head"], {}, x, train=True)[0]  # noqa: E731
        out = {"logits": head(h["patches"]), "words": words, "mask": mask}  # (B, N, K)
        if self.aggregate:  # all that the last blocks know of the picture must pass through the class token (section 2.3)
            early = h["layers"][self.aggregate - 1][:, -words.shape[1] :]
            x, _ = models.apply(self.shallow, params["shallow"], {}, jnp.concatenate([h["cls"][:, None], early], axis=1), train=True)
            out["aggregated"] = head(x[:, 1:])
        return out, extra

    def objective(self, params, extra, encodings, batch, s):
        logits, words, mask = (encodings[k] for k in ("logits", "words", "mask"))
        loss = losses.masked_tokens(logits, words, mask)
        if self.aggregate:
            loss = loss + losses.masked_tokens(encodings["aggregated"], words, mask)
        return loss, (extra, networks.said_right(logits, words, mask, self.codes))
