"""Distillation of a classifier (Chen et al. 2020, arXiv 2006.10029, section 2): SimCLR v2's last stage, on pictures without labels."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.errors import UserError
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class Distill(Method):
    """-sum_y P(y | x; teacher, T) log P(y | x; student, T) (equation 2); with labels, alpha of that and 1 - alpha of the usual
    cross-entropy (equation 3). The teacher's is a run of `supervised`, frozen; the student has its classes."""

    encoder: nn.Module = module("the student's encoder", name="vit")
    teacher: str = arg("", "workdir of a run of supervised; empty: the classes of a random one of this encoder, a baseline")
    temperature: float = arg(1.0, "of both softmaxes")
    alpha: float = arg(1.0, "weight of the distillation; what is left to 1 is that of the labels")
    classes: int = arg(1000, "number of classes, the teacher's")

    def weights(self):
        return {"teacher": networks.checkpoint(self.teacher, "teacher", "embed")[1]} if self.teacher else {}

    @property
    def parts(self):
        return {"encoder": self.encoder, "head": models.module_class("linear_head")(out=self.classes)}

    def init(self, rng, batch):
        r = jax.random.split(rng)
        params, stats = networks.init(self.parts, r[0], batch["views"])
        if self.teacher:
            return params, {"stats": stats, "frozen": networks.blank(self.weights())}
        other, other_stats = networks.init(self.parts, r[1], batch["views"])
        return params, {"stats": stats, "frozen": {"teacher": {"params": other, "extra": {"stats": other_stats}}}}

    def taught(self, extra, images):
        """Logits (B, classes) of the frozen teacher."""
        frozen = extra["frozen"]["teacher"]
        if not self.teacher:
            return networks.forward(self.parts, frozen["params"], frozen["extra"]["stats"], images[:, None], train=False)[0]["head"][:, 0]
        method, _ = networks.checkpoint(self.teacher, "teacher", "embed")
        logits = method.embed(frozen["params"], frozen["extra"], {"image": images}).get("logits")
        if logits is None or logits.shape[-1] != self.classes:
            raise UserError(f"config.method.teacher={self.teacher!r} gives no logits of classes={self.classes}")
        return logits

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"][:, :1], rng=rng)
        taught = jax.lax.stop_gradient(self.taught(extra, batch["views"][:, 0]))
        return {"logits": out["head"][:, 0], "taught": taught.astype(jnp.float32)}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        logits, taught = encodings["logits"], encodings["taught"]
        target, ours = jax.nn.softmax(taught / self.temperature), jax.nn.log_softmax(logits / self.temperature)
        loss = -(target * ours).sum(-1).mean()
        if self.alpha < 1:
            loss = self.alpha * loss + (1 - self.alpha) * losses.cross_entropy(logits, batch["label"])
        return loss, (extra, {"agreement": (logits.argmax(-1) == taught.argmax(-1)).mean()})

    def embed(self, params, extra, batch):
        out, _ = networks.forward(self.parts, params, extra["stats"], batch["image"][:, None], train=False)
        return {"features": out["encoder"]["pooled"][:, 0], "logits": out["head"][:, 0]}
