"""MAE (He et al. 2021, arXiv 2111.06377): encode a quarter of the patches, reconstruct the pixels of the others."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class MAE(Method):
    """ids_keep, mask, ids_restore = random_masking(noise); pred = decoder(encoder(image, ids_keep)); MSE on masked patches."""

    encoder: nn.Module = module("the encoder, run on visible patches only", name="vit", position="sincos_mae")
    decoder: nn.Module = module("narrow decoder of pixels, thrown away afterwards", name="mae_decoder")
    mask_ratio: float = arg(0.75, "share of the patches that is removed")
    norm_pix_loss: bool = arg(True, "reconstruct patches normalised by their own mean and variance")

    def init(self, rng, batch):
        r = jax.random.split(rng, 3)
        images = batch["views"][:, 0]
        keep, _, restore = self._masking(r[2], images)
        encoder, _ = models.init(self.encoder, r[0], images, train=False, keep=keep)
        h, _ = models.apply(self.encoder, encoder, {}, images, train=False, keep=keep)
        decoder, _ = models.init(self.decoder, r[1], h["patches"], restore, train=False, cls=h.get("cls"))
        return {"encoder": encoder, "decoder": decoder}, {}

    def _masking(self, rng, images):
        batch, height, width = images.shape[:3]
        patches = (height // self.encoder.patch_size) * (width // self.encoder.patch_size)
        return losses.random_masking(jax.random.uniform(rng, (batch, patches)), self.mask_ratio)

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        images = batch["views"][:, 0]
        keep, mask, restore = self._masking(r[0], images)
        h, _ = models.apply(self.encoder, params["encoder"], {}, images, train=True, rng=r[1], keep=keep)
        pred, _ = models.apply(self.decoder, params["decoder"], {}, h["patches"], restore, train=True, cls=h.get("cls"))  # (B, N, p*p*3)
        return {"pred": pred, "mask": mask}, extra

    def objective(self, params, extra, encodings, batch, s):
        images, pred, mask = batch["views"][:, 0], encodings["pred"], encodings["mask"]
        size = dict(patch_size=self.encoder.patch_size)
        loss = losses.mae(pred, images, mask, **size, norm_pix_loss=self.norm_pix_loss)
        return loss, (extra, {"mean_fill_ratio": loss / self._mean_fill(images, mask, size)})

    def _mean_fill(self, images, mask, size):
        """The same error when every masked patch is filled with the mean of the targets: 1 is no better than the mean."""
        target = losses.mae_target(images, **size, norm_pix_loss=self.norm_pix_loss)
        mean = target.mean(axis=(0, 1), keepdims=True)
        return (jnp.square(target - mean).mean(-1) * mask).sum() / mask.sum()

    def embed(self, params, extra, batch):
        h, _ = models.apply(self.encoder, params["encoder"], {}, batch["image"], train=False, tokens=False)
        return {"features": h["pooled"]}

    def pictures(self, params, extra, batch, rng):
        encodings, _ = self.encode(params, extra, batch, rng, {})
        images, size = batch["views"][:, 0], self.encoder.patch_size
        return networks.reconstructions(images, encodings["pred"], encodings["mask"], size, norm_pix_loss=self.norm_pix_loss)
