"""SigLIP 2 (Tschannen et al. 2025, arXiv 2502.14786): the sigmoid loss, a captioning decoder, and at the end self-distillation."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models import towers


@dataclasses.dataclass(frozen=True)
class SigLIP2(Method):
    """SigLIP + caption_weight CapPa's cross-entropy (section 2.2) + from `self_start` of the run on: local-to-global consistency, the
    student's small views against the teacher's whole one, and masked prediction, the teacher's patches (section 2.3).

    "views" has one view, "crops" the small ones. The self-supervised losses go through DINO's head, one each, as in SILC and TIPS; the
    teacher is a moving average of image tower and heads. Captions are read by a decoder on the patches; the last id starts a text."""

    encoder: nn.Module = module("the image tower", name="vit", pool="map", class_token=False, mask_token=True)
    text: nn.Module = module("the text tower", name="text", out=768, out_bias=True)
    decoder: nn.Module = module("the captions' decoder; its memory_width is the encoder's width", name="text", cross=True, depth=6)
    head: nn.Module = module("DINO's head, of pooled vectors and, another, of patches", name="dino_head", out=16384)
    init_temperature: float = arg(10.0, "logit scale at the start; its logarithm is learned")
    init_bias: float = arg(-10.0, "logit bias at the start; learned")
    caption_weight: float = arg(1.0, "weight of the captions")
    parallel: float = arg(0.5, "share of the batch whose caption is predicted all at once")
    self_start: float = arg(0.8, "share of the run after which the self-supervised losses count")
    local_weight: float = arg(1.0, "weight of local-to-global consistency")
    mask_weight: float = arg(2.5, "weight of masked prediction")
    mask_ratio: float = arg(0.5, "share of the patches that is masked for it, in blocks")
    student_temperature: float = arg(0.1, "temperature of the student's softmax")
    teacher_temperature: float = arg(0.04, "temperature of the teacher's")
    centre: float = arg(0.9, "momentum of the centres")
    ema: float = arg(0.999, "momentum of the teacher")

    def schedules(self, run):
        start = round(self.self_start * run.steps)
        return {"self_weight": lambda step: (step >= start).astype(jnp.float32), "ema": lambda step: jnp.float32(self.ema)}

    def init(self, rng, batch):
        r, images = jax.random.split(rng, 4), batch["views"][:, 0]
        params, stats = towers.init(self.encoder, self.text, r[0], images, batch["text"])
        h, _ = models.apply(self.encoder, params["encoder"], {}, images, train=False)
        params["decoder"], _ = models.init(self.decoder, r[1], batch["text"], train=False, memory=h["patches"])
        for name, key, x in (("head", r[2], h["pooled"]), ("patch_head", r[3], h["patches"])):
            params[name], _ = models.init(self.head, key, x, train=False)
        params |= {"logit_scale": jnp.float32(math.log(self.init_temperature)), "logit_bias": jnp.float32(self.init_bias)}
        centres = {"centre": jnp.zeros((1, self.head.out)), "patch_centre": jnp.zeros((1, self.head.out))}
        copied = {name: {} for name in ("encoder", "head", "patch_head")}
        return params, {"stats": stats, **networks.teacher(params, copied, list(copied)), **centres}

    def encode(self, params, extra, batch, rng, s):
        r, images, ids, special = jax.random.split(rng, 6), batch["views"][:, 0], batch["text"], self.decoder.vocab_size - 1
        run = lambda p, x, **how: models.apply(self.encoder, p["encoder"], {}, x, train=True, **how)[0]  # noqa: E731
        of = lambda p, name, x: models.apply(self.head, p[name], {}, x, train=True)[0]  # noqa: E731
        h = run(params, images, rng=r[0])
        t, _ = models.apply(self.text, params["text"], {}, ids, train=True, rng=r[1])
        read, seen, _ = networks.partly_at_once(r[2], ids, special, self.parallel)
        logits = towers.next_words(self.decoder, params["decoder"], read, h["patches"], valid=seen, train=True, rng=r[3])

        size = self.encoder.patch_size
        masked = round(self.mask_ratio * towers.image_patches(self.encoder, images))
        mask = networks.masks("block", r[4], images, size, masked=masked, least=min(4, masked))["mask"]
        hidden = run(params, images, rng=r[5], mask=mask > 0)
        crops = batch["crops"]
        small = run(params, models.flat_views(crops), rng=r[5])
        teacher = jax.lax.stop_gradient(run(extra["teacher"], images))
        out = {"image": towers.unit(h), "text": towers.unit(t), "logits": logits, "mask": mask}
        out |= {
            "local": of(params, "head", small["pooled"]).reshape(*crops.shape[:2], -1),
            "masked": of(params, "patch_head", hidden["patches"]),
        }
        out |= {"whole": of(extra["teacher"], "head", teacher["pooled"]), "patches": of(extra["teacher"], "patch_head", teacher["patches"])}
        return out, extra

    def objective(self, params, extra, encodings, batch, s):
        e, scale = encodings, jnp.exp(params["logit_scale"])
        pairs = losses.siglip(e["image"], e["text"], scale, params["logit_bias"])
        caption = losses.caption(e["logits"], batch["text"])
        student = lambda x: jax.nn.log_softmax(x / self.student_temperature)  # noqa: E731
        teacher = lambda x, centre: jax.nn.softmax((jax.lax.stop_gradient(x) - centre) / self.teacher_temperature)  # noqa: E731
        whole, patches = teacher(e["whole"], extra["centre"]), teacher(e["patches"], extra["patch_centre"])
        local = -(whole[:, None] * student(e["local"])).sum(-1).mean()
        masked = losses.masked_mean(-(patches * student(e["masked"])).sum(-1), e["mask"])
        loss = pairs + self.caption_weight * caption
        loss = loss + s["self_weight"] * (self.local_weight * local + self.mask_weight * masked)
        keep = lambda centre, x: self.centre * centre + (1 - self.centre) * x.reshape(-1, x.shape[-1]).mean(0, keepdims=True)  # noqa: E731
        extra = {**extra, "centre": keep(extra["centre"], e["whole"]), "patch_centre": keep(extra["patch_centre"], e["patches"])}
        metrics = {"siglip_loss": pairs, "caption_loss": caption, "local_loss": local, "masked_loss": masked, "logit_scale": scale}
        return loss, (extra, metrics)

    def writer(self, params, extra, images):
        """A `decode.Writer` of the captions of normalised images (B, H, W, 3)."""
        return towers.writer(self.encoder, self.decoder, params, params["decoder"], extra["stats"], images)

    def after_step(self, params, extra, s):
        return networks.follow(extra, params, s["ema"])

    def embed(self, params, extra, batch):
        return towers.embed(self.encoder, self.text, params, extra["stats"], batch)
