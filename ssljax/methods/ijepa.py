"""I-JEPA (Assran et al. 2023, arXiv 2301.08243): from a context block, predict the teacher's tokens of other blocks of the image."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks, schedules
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class IJEPA(Method):
    """s_y = teacher(image) at each target block; s_x = encoder(context); loss = smooth L1 of predictor(s_x, places of the block), s_y."""

    encoder: nn.Module = module("the encoder, run on the context only", name="vit", class_token=False, pool="gap", position="sincos_mae")
    predictor: nn.Module = module("narrow transformer from the context to a target block's tokens", name="predictor")
    targets: int = arg(4, "target blocks of an image")
    target_scale: tuple = arg((0.15, 0.2), "share of the patches that a target block covers: least, most")
    context_scale: tuple = arg((0.85, 1.0), "share that the context block covers, before the targets are cut out of it")
    context: float = arg(0.25, "share of all patches that is encoded as the context, a static number")
    ema: float = arg(0.996, "teacher momentum at the start; rises to 1 in a line")
    ema_final: float = arg(1.0, "teacher momentum at the end")

    def schedules(self, run):
        return {"ema": schedules.linear(self.ema, self.ema_final, run.steps)}

    @property
    def predicts(self):
        return self.predictor.clone(out=self.encoder.width)

    def init(self, rng, batch):
        r = jax.random.split(rng, 3)
        images = batch["views"][:, 0]
        encoder, _ = models.init(self.encoder, r[0], images, train=False)
        h, _ = models.apply(self.encoder, encoder, {}, images, train=False)
        ids = jnp.zeros((images.shape[0], 1), jnp.int32)
        predictor, _ = models.init(self.predicts, r[1], h["patches"][:, :1], ids, ids, train=False)
        params, stats = {"encoder": encoder, "predictor": predictor}, {"encoder": {}, "predictor": {}}
        return params, {"stats": stats, **networks.teacher(params, stats, ["encoder"])}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        images, size = batch["views"][:, 0], self.encoder.patch_size
        scales = dict(target_scale=self.target_scale, context_scale=self.context_scale)
        context = max(round(self.context * (images.shape[1] // size) * (images.shape[2] // size)), 1)
        m = networks.masks("multi_block", r[0], images, size, context=context, targets=self.targets, **scales)
        targets = jnp.moveaxis(m["ids_masked"], 1, 0)  # (T, B, M)
        teacher, _ = models.apply(self.encoder, extra["teacher"]["encoder"], {}, images, train=False)
        h, _ = models.apply(self.encoder, params["encoder"], {}, images, train=True, rng=r[1], keep=m["ids_keep"])
        # All blocks in one pass: each has the whole context in front of it.
        count, rows = targets.shape[:2]
        repeat = lambda x: jnp.tile(x, (count, *[1] * (x.ndim - 1)))  # noqa: E731
        asked = targets.reshape(count * rows, -1)
        predictions, _ = models.apply(
            self.predicts, params["predictor"], {}, repeat(h["patches"]), repeat(m["ids_keep"]), asked, train=True
        )
        predictions = predictions.reshape(count, rows, *predictions.shape[1:])  # (T, B, M, D)
        target = losses.ijepa_targets(teacher["patches"], targets)
        return {"predictions": jnp.moveaxis(predictions, 1, 0), "targets": jnp.moveaxis(target, 1, 0)}, extra

    def objective(self, params, extra, encodings, batch, s):
        predictions, targets = (jnp.moveaxis(encodings[k], 0, 1) for k in ("predictions", "targets"))
        loss = losses.ijepa(predictions[:, None], targets)
        return loss, (extra, {"target_std": targets.std(axis=(0, 1, 2)).mean()})  # over images and places: 0 where all tokens are alike

    def after_step(self, params, extra, s):
        return networks.follow(extra, params, s["ema"])

    def embed(self, params, extra, batch):
        return networks.features(self.encoder, extra["teacher"], extra["teacher_stats"], batch["image"])
