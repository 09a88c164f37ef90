"""CLIP distilled (Wu et al. 2023, TinyCLIP, arXiv 2309.12314): a student's similarities follow a frozen teacher's, beside its own loss."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models import towers


@dataclasses.dataclass(frozen=True)
class DistillCLIP(Method):
    """L = CLIP(student) + distill_weight cross-entropy of its rows and columns from the teacher's (open_clip's DistillClipLoss)."""

    encoder: nn.Module = module("the image tower", name="vit", out=512)
    text: nn.Module = module("the text tower", name="text", causal=True, pool="eot", out=512)
    teacher: str = arg(
        "", "workdir of a run of clip, siglip, ... or of convert.py, with the same tokenizer; empty: the student's own start"
    )
    init_temperature: float = arg(0.07, "temperature at the start; the logarithm of its inverse, the logit scale, is learned")
    teacher_temperature: float = arg(0.01, "temperature of the teacher's similarities")
    max_scale: float = arg(100.0, "the logit scale is held at or below it")
    distill_weight: float = arg(1.0, "weight of the distillation")

    def weights(self):
        return {"teacher": networks.checkpoint(self.teacher, "teacher", "embed")[1]} if self.teacher else {}

    def init(self, rng, batch):
        params, stats = towers.init(self.encoder, self.text, rng, batch["views"][:, 0], batch["text"])
        own = {"teacher": {"params": jax.tree.map(jnp.copy, params), "extra": {"stats": jax.tree.map(jnp.copy, stats)}}}
        frozen = networks.blank(self.weights()) if self.teacher else own
        return params | towers.start_scale(self.init_temperature), {"stats": stats, "frozen": frozen}

    def encode(self, params, extra, batch, rng, s):
        encodings, stats = towers.encode(self.encoder, self.text, params, extra["stats"], batch, rng)
        frozen, raw = extra["frozen"]["teacher"], {"image": batch["views"][:, 0], "text": batch["text"]}
        if self.teacher:
            taught = networks.checkpoint(self.teacher, "teacher", "embed")[0].embed(frozen["params"], frozen["extra"], raw)
        else:
            taught = towers.embed(self.encoder, self.text, frozen["params"], frozen["extra"]["stats"], raw)
        taught = jax.lax.stop_gradient({"teacher_image": taught["image_embedding"], "teacher_text": taught["text_embedding"]})
        return {**encodings, **taught}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        scale = towers.scale(params, self.max_scale)
        x, y = encodings["image"], encodings["text"]
        clip = losses.clip_softmax(x, y, scale)
        teacher = (encodings["teacher_image"], encodings["teacher_text"], jnp.float32(1 / self.teacher_temperature))
        distill = losses.distill_clip(x, y, scale, *teacher)
        return clip + self.distill_weight * distill, (extra, {"clip_loss": clip, "distill_loss": distill, "logit_scale": scale})

    def embed(self, params, extra, batch):
        return towers.embed(self.encoder, self.text, params, extra["stats"], batch)
