"""MAE-CLIP (Weers et al. 2023, arXiv 2301.07836): CLIP with masked reconstruction on its image tower."""

import dataclasses

import flax.linen as nn
import jax

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models import towers


@dataclasses.dataclass(frozen=True)
class MAECLIP(Method):
    """CLIP + mae_weight * MAE of the same view: pixels of the masked patches from the image tower's tokens of the others (section 3)."""

    encoder: nn.Module = module("the image tower", name="vit", position="sincos_mae", out=512)
    text: nn.Module = module("the text tower", name="text", causal=True, pool="eot", out=512)
    decoder: nn.Module = module("narrow decoder of pixels, thrown away afterwards", name="mae_decoder")
    mask_ratio: float = arg(0.75, "share of the patches that is removed for the reconstruction")
    norm_pix_loss: bool = arg(True, "reconstruct patches normalised by their own mean and variance")
    mae_weight: float = arg(1.0, "weight of the reconstruction")
    init_temperature: float = arg(0.07, "temperature at the start; the logarithm of its inverse, the logit scale, is learned")
    max_scale: float = arg(100.0, "the logit scale is held at or below it")

    def _masked(self, rng, images):
        return losses.random_masking(
            jax.random.uniform(rng, (images.shape[0], towers.image_patches(self.encoder, images))), self.mask_ratio
        )

    def init(self, rng, batch):
        r, images = jax.random.split(rng, 3), batch["views"][:, 0]
        params, stats = towers.init(self.encoder, self.text, r[0], images, batch["text"])
        keep, _, restore = self._masked(r[1], images)
        h, _ = models.apply(self.encoder, params["encoder"], {}, images, train=False, keep=keep)
        params["decoder"], _ = models.init(self.decoder, r[2], h["patches"], restore, train=False, cls=h.get("cls"))
        return params | towers.start_scale(self.init_temperature), {"stats": stats}

    def encode(self, params, extra, batch, rng, s):
        r, images = jax.random.split(rng, 3), batch["views"][:, 0]
        pairs, stats = towers.encode(self.encoder, self.text, params, extra["stats"], batch, r[0])
        keep, mask, restore = self._masked(r[1], images)
        h, _ = models.apply(self.encoder, params["encoder"], {}, images, train=True, rng=r[2], keep=keep)
        pred, _ = models.apply(self.decoder, params["decoder"], {}, h["patches"], restore, train=True, cls=h.get("cls"))
        return {**pairs, "pred": pred, "mask": mask}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        scale = towers.scale(params, self.max_scale)
        clip = losses.clip_softmax(encodings["image"], encodings["text"], scale)
        size = dict(patch_size=self.encoder.patch_size, norm_pix_loss=self.norm_pix_loss)
        mae = losses.mae(encodings["pred"], batch["views"][:, 0], encodings["mask"], **size)
        return clip + self.mae_weight * mae, (extra, {"clip_loss": clip, "mae_loss": mae, "logit_scale": scale})

    def embed(self, params, extra, batch):
        return towers.embed(self.encoder, self.text, params, extra["stats"], batch)

    def pictures(self, params, extra, batch, rng):
        encodings, _ = self.encode(params, extra, batch, rng, {})
        images, size = batch["views"][:, 0], self.encoder.patch_size
        return networks.reconstructions(images, encodings["pred"], encodings["mask"], size, norm_pix_loss=self.norm_pix_loss)
