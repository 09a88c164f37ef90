"""CAE (Chen et al. 2022, arXiv 2202.03026): what is masked is first guessed as the encoder's own features, then decoded to words."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class CAE(Method):
    """z_m = regressor(encoder(visible)); loss = cross-entropy of head(decoder(z_m)), words of the masked patches + align_weight *
    |z_m - sg(encoder(masked))|^2 (equation 1). The encoder never sees a mask token: it has no part in the pretext task."""

    encoder: nn.Module = module("the encoder, run on visible patches, and on masked ones for a target", name="vit", position="sincos_mae")
    regressor: nn.Module = module("from visible features and the places of the masked to theirs", name="latent_regressor", depth=4)
    tokenizer: str = arg("", "workdir of the first stage, a run of dvae or vqkd; empty: words are patches' mean colours, 8 levels each")
    mask_ratio: float = arg(0.5, "share of the patches that is masked, in blocks")
    least: int = arg(16, "patches of the smallest masked block")
    decoder_depth: int = arg(4, "blocks of the decoder")
    align_weight: float = arg(2.0, "weight of the distance of guessed features from the encoder's")

    def weights(self):
        return networks.tokenizer_weights(self.tokenizer)

    @property
    def codes(self):
        return networks.codes(self.tokenizer)

    @property
    def head(self):
        return models.module_class("linear_head")(out=self.codes)

    def _of(self, images):
        """The regressor and the decoder for this grid of patches and the encoder's width."""
        grid = tuple(side // self.encoder.patch_size for side in images.shape[1:3])
        same = {name: getattr(self.encoder, name) for name in ("heads", "mlp_dim", "activation", "norm_eps")}
        return self.regressor.clone(grid=grid, width=self.encoder.width), Transformer(depth=self.decoder_depth, **same)

    def init(self, rng, batch):
        r, images = jax.random.split(rng, 4), batch["views"][:, 0]
        regressor, decoder = self._of(images)
        encoder, stats = models.init(self.encoder, r[0], images, train=False)
        x, ids = jnp.zeros((1, 2, self.encoder.width)), jnp.zeros((1, 2), jnp.int32)
        params = {
            "encoder": encoder,
            "regressor": models.init(regressor, r[1], x, ids, ids, train=False)[0],
            "decoder": models.init(decoder, r[2], x, train=False)[0],
            "head": models.init(self.head, r[3], x, train=False)[0],
        }
        return params, {"stats": {"encoder": stats}, "frozen": networks.blank(self.weights())}

    def encode(self, params, extra, batch, rng, s):
        r, images, size = jax.random.split(rng, 3), batch["views"][:, 0], self.encoder.patch_size
        regressor, decoder = self._of(images)
        words = networks.words(self.tokenizer, extra, images, size)  # (B, N)
        m = networks.masks("block", r[0], images, size, masked=round(self.mask_ratio * words.shape[1]), least=self.least)
        keep, hidden = m["ids_keep"], m["ids_masked"]
        visible, _ = models.apply(self.encoder, params["encoder"], {}, images, train=True, rng=r[1], keep=keep)
        target, _ = models.apply(self.encoder, params["encoder"], {}, images, train=False, keep=hidden)
        guess, _ = models.apply(regressor, params["regressor"], {}, visible["patches"], keep, hidden, train=True)
        x, _ = models.apply(decoder, params["decoder"], {}, guess, train=True)
        logits, _ = models.apply(self.head, params["head"], {}, x, train=True)  # (B, m, K)
        words = jnp.take_along_axis(words, hidden, axis=1)
        return {"logits": logits, "words": words, "guess": guess, "target": jax.lax.stop_gradient(target["patches"])}, extra

    def objective(self, params, extra, encodings, batch, s):
        logits, words, guess, target = (encodings[k] for k in ("logits", "words", "guess", "target"))
        apart = jnp.square(guess.astype(jnp.float32) - target.astype(jnp.float32)).mean()
        loss = losses.cross_entropy(logits, words) + self.align_weight * apart
        return loss, (extra, {"aligned": apart, **networks.said_right(logits, words, jnp.ones(words.shape), self.codes)})
