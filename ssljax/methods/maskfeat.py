"""MaskFeat (Wei et al. 2021, arXiv 2112.09133): predict the histograms of oriented gradients of the masked patches."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class MaskFeat(Method):
    """target = HOG(image) in cells, joined by patch; prediction = head(encoder(masked image)); squared error at the masked patches."""

    encoder: nn.Module = module("the encoder, which sees mask tokens", name="vit", mask_token=True, pool="gap")
    mask_ratio: float = arg(0.4, "share of the patches that is masked, in blocks")
    least: int = arg(16, "patches of the smallest masked block")
    cell: int = arg(8, "side of a cell, pixels")
    orientations: int = arg(9, "bins of orientation")

    @property
    def head(self):
        cells = (self.encoder.patch_size // self.cell) ** 2
        return models.module_class("linear_head")(out=cells * 3 * self.orientations)

    @property
    def parts(self):
        return {"encoder": self.encoder, "head": self.head}

    def target(self, images):
        """(B, N, D): the cells of a patch side by side, so that it is `patchify` of the map of histograms."""
        cells = losses.hog(images, cell=self.cell, orientations=self.orientations)  # (B, h, w, 3, O)
        return losses.patchify(cells.reshape(*cells.shape[:3], -1), self.encoder.patch_size // self.cell)

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        images, size = batch["views"][:, 0], self.encoder.patch_size
        count = (images.shape[1] // size) * (images.shape[2] // size)
        mask = networks.masks("block", r[0], images, size, masked=round(self.mask_ratio * count), least=self.least)["mask"]
        h, _ = models.apply(self.encoder, params["encoder"], {}, images, train=True, rng=r[1], mask=mask > 0)
        prediction, _ = models.apply(self.head, params["head"], {}, h["patches"], train=True)  # (B, N, D)
        return {"prediction": prediction, "mask": mask}, extra

    def objective(self, params, extra, encodings, batch, s):
        target, mask = self.target(batch["views"][:, 0]), encodings["mask"]
        error = lambda x: losses.masked_mean(jnp.square(x - target).mean(-1), mask)  # noqa: E731
        loss = error(encodings["prediction"])
        return loss, (extra, {"mean_fill_ratio": loss / error(target.mean((0, 1), keepdims=True))})
