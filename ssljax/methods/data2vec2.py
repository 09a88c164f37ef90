"""data2vec 2.0 (Baevski et al. 2022, arXiv 2212.07525): many masks of an image, whose teacher looks at it once."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks, schedules
from ssljax.errors import UserError
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class Data2Vec2(Method):
    """target = mean of the normalised top layers of teacher(image); for each of M masks, prediction = decoder(student(visible patches));
    squared error at the masked patches, and of the class token to the mean of the targets (section 3)."""

    encoder: nn.Module = module("the encoder, run on visible patches only", name="vit", position="sincos_mae")
    decoder: nn.Module = module("from visible patches to all, thrown away afterwards", name="conv_decoder")
    masks: int = arg(16, "masks of an image")
    mask_ratio: float = arg(0.8, "share of the patches that is removed")
    side: int = arg(3, "side of a block of patches that is kept, patches")
    adjust: float = arg(0.07, "share of the patches that is kept in blocks beyond 1 - mask_ratio, since blocks overlap")
    noise: float = arg(0.01, "standard deviation of what stands for masked patches in front of the decoder")
    top_layers: int = arg(10, "so many of the teacher's last blocks are averaged")
    target: str = arg("mlp", "of a block: its end, or mlp, what its MLP gives before it is added", ("block", "mlp"))
    target_norms: tuple = arg(("instance",), "what a block's targets go through before their mean: layer, instance, batch, in this order")
    mean_norms: tuple = arg(("layer",), "what their mean goes through")
    class_weight: float = arg(0.01, "of the class token's loss, where the encoder has one")
    ema: float = arg(0.9998, "teacher momentum at the start")
    ema_final: float = arg(0.99999, "teacher momentum from ema_steps on")
    ema_steps: int = arg(0, "steps in which it rises in a line; 0: the whole run")

    def __post_init__(self):
        for name in ("masks", "side"):
            if getattr(self, name) < 1:
                raise UserError(f"config.method.{name}={getattr(self, name)}: expected at least 1")

    def schedules(self, run):
        return {"ema": schedules.linear(self.ema, self.ema_final, min(self.ema_steps or run.steps, run.steps))}

    @property
    def predicts(self):
        return self.decoder.clone(out=self.encoder.width)

    def init(self, rng, batch):
        r = jax.random.split(rng, 3)
        images = batch["views"][:, 0]
        m = self._masks(r[2], images)
        encoder, _ = models.init(self.encoder, r[0], images, train=False, keep=m["ids_keep"])
        h, _ = models.apply(self.encoder, encoder, {}, images, train=False, keep=m["ids_keep"])
        decoder, _ = models.init(self.predicts, r[1], h["patches"], self._noise(r[2], m), m["ids_restore"], train=False)
        params, stats = {"encoder": encoder, "decoder": decoder}, {"encoder": {}, "decoder": {}}
        return params, {"stats": stats, **networks.teacher(params, stats, ["encoder"])}

    def _masks(self, rng, images):
        size = self.encoder.patch_size
        count = (images.shape[1] // size) * (images.shape[2] // size)
        blocks = dict(masked=round(self.mask_ratio * count), side=self.side, adjust=self.adjust)
        return networks.masks("inverse_block", rng, images, size, **blocks)

    def _noise(self, rng, m):
        return self.noise * jax.random.normal(rng, (*m["ids_masked"].shape, self.encoder.width))

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng, 3)
        images = batch["views"][:, 0]
        teacher, _ = models.apply(self.encoder, extra["teacher"]["encoder"], {}, images, train=False, layers=self.target)
        copies = jnp.repeat(images, self.masks, axis=0)  # (B M, H, W, 3)
        m = self._masks(r[0], copies)
        h, _ = models.apply(self.encoder, params["encoder"], {}, copies, train=True, rng=r[1], keep=m["ids_keep"])
        decoded = h["patches"], self._noise(r[2], m), m["ids_restore"]
        prediction, _ = models.apply(self.predicts, params["decoder"], {}, *decoded, train=True)
        layers = teacher["layers"][-self.top_layers :, :, -m["mask"].shape[1] :]  # (K, B, N, D)
        each = lambda x: x.reshape(-1, self.masks, *x.shape[1:])  # (B M, ...) -> (B, M, ...)  # noqa: E731
        encodings = {"prediction": each(prediction), "masked": each(m["mask"])}
        encodings |= {"cls": each(h["cls"])} if "cls" in h else {}
        target = losses.data2vec_target(layers, norms=self.target_norms, norms_after=self.mean_norms)
        return encodings | {"target": target}, extra

    def objective(self, params, extra, encodings, batch, s):
        target = encodings["target"]  # (B, N, D), of each of the M predictions
        loss = losses.masked_squared_error(encodings["prediction"], target[:, None], encodings["masked"])
        if "cls" in encodings:
            error = jnp.square(encodings["cls"].astype(jnp.float32) - target.mean(axis=1, keepdims=True))
            loss = loss + self.class_weight * error.mean()
        return loss, (extra, {"target_std": target.std(axis=(0, 1)).mean()})  # towards 0: the targets have collapsed

    def after_step(self, params, extra, s):
        return networks.follow(extra, params, s["ema"])
