"""EVA (Fang et al. 2022, arXiv 2211.07636) and MVP (Wei et al. 2022, arXiv 2203.05175): predict a frozen tower's features of patches."""

import dataclasses

import flax.linen as nn
import jax

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class EVA(Method):
    """target = tower(image), frozen; prediction = head(encoder(image with blocks masked)); -cos at the masked patches.

    EVA normalises the target by a LayerNorm without parameters; MVP (layer_norm=False) takes it as it is."""

    encoder: nn.Module = module("the encoder, which sees mask tokens", name="vit", mask_token=True, pool="gap")
    tower: str = arg("", "workdir of the run, or of convert.py, whose features are predicted; empty: the patches' own pixels")
    mask_ratio: float = arg(0.4, "share of the patches that is masked, in blocks")
    least: int = arg(16, "patches of the smallest masked block")
    layer_norm: bool = arg(True, "normalise the target of each patch")

    def weights(self):
        return networks.tower_weights(self.tower)

    def target(self, extra, images):
        """(B, N, D)"""
        x = networks.tower_patches(self.tower, extra, images, self.encoder.patch_size)
        return losses.data2vec_target(x[None]) if self.layer_norm else x

    def init(self, rng, batch):
        extra = {"frozen": networks.blank(self.weights())}
        out = jax.eval_shape(lambda: self.target(extra, batch["views"][:, 0])).shape[-1]
        params, stats = networks.init({"encoder": self.encoder, "head": self.head(out)}, rng, batch["views"])
        return params, {**extra, "stats": stats}

    def head(self, out):
        return models.module_class("linear_head")(out=out)

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        images, size = batch["views"][:, 0], self.encoder.patch_size
        target = self.target(extra, images)
        mask = networks.masks("block", r[0], images, size, masked=round(self.mask_ratio * target.shape[1]), least=self.least)["mask"]
        h, _ = models.apply(self.encoder, params["encoder"], {}, images, train=True, rng=r[1], mask=mask > 0)
        prediction, _ = models.apply(self.head(target.shape[-1]), params["head"], {}, h["patches"], train=True)  # (B, N, D)
        return {"prediction": prediction, "target": target, "mask": mask}, extra

    def objective(self, params, extra, encodings, batch, s):
        target, mask = encodings["target"], encodings["mask"]
        cosine = lambda x: losses.masked_mean(losses.rowwise(losses.normalise(x), losses.normalise(target)), mask)  # noqa: E731
        own = cosine(encodings["prediction"])
        return -own, (extra, {"target_cosine": own, "mean_cosine": cosine(target.mean((0, 1), keepdims=True))})
