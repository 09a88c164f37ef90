"""SimMIM (Xie et al. 2021, arXiv 2111.09886): mask tokens in the encoder, one linear layer to the pixels that they hide."""

import dataclasses

import flax.linen as nn
import jax

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class SimMIM(Method):
    """pred = decoder(encoder(image with cells masked)); mean |pred - image| over the masked pixels (equation 1)."""

    encoder: nn.Module = module("the encoder, which sees mask tokens", name="vit", mask_token=True)
    decoder: nn.Module = module("one linear layer to pixels", name="pixel_shuffle")
    mask_ratio: float = arg(0.6, "share of the cells that is masked")
    cell: int = arg(2, "side of a masked cell, patches (32 pixels in the paper)")

    def init(self, rng, batch):
        r = jax.random.split(rng)
        images = batch["views"][:, 0]
        encoder, stats = models.init(self.encoder, r[0], images, train=False)
        h, _ = models.apply(self.encoder, encoder, stats, images, train=False)
        decoder, _ = models.init(self.decoder, r[1], h["patches"], train=False)
        return {"encoder": encoder, "decoder": decoder}, {"stats": {"encoder": stats}}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        images, size = batch["views"][:, 0], self.encoder.patch_size
        cells = (images.shape[1] // size // self.cell) * (images.shape[2] // size // self.cell)
        masked = max(round(self.mask_ratio * cells), 1) * self.cell**2
        mask = networks.masks("cells", r[0], images, size, masked=masked, side=self.cell)["mask"]  # (B, N)
        h, stats = models.apply(self.encoder, params["encoder"], extra["stats"]["encoder"], images, train=True, rng=r[1], mask=mask > 0)
        pred, _ = models.apply(self.decoder, params["decoder"], {}, h["patches"], train=True)  # (B, N, p*p*3)
        return {"pred": pred, "mask": mask}, {**extra, "stats": {"encoder": stats}}

    def objective(self, params, extra, encodings, batch, s):
        images, size = batch["views"][:, 0], self.encoder.patch_size
        grid = tuple(side // size for side in images.shape[1:3])
        pred, mask = losses.unpatchify(encodings["pred"], size, grid), encodings["mask"]
        loss = losses.simmim(pred, images, mask.reshape(-1, *grid), patch_size=size)
        filled = losses.simmim(images.mean((1, 2), keepdims=True) + 0 * images, images, mask.reshape(-1, *grid), patch_size=size)
        return loss, (extra, {"mean_fill_ratio": loss / filled})

    def pictures(self, params, extra, batch, rng):
        encodings, _ = self.encode(params, extra, batch, rng, {})
        return networks.reconstructions(batch["views"][:, 0], encodings["pred"], encodings["mask"], self.encoder.patch_size)
