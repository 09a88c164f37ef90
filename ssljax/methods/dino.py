"""DINO (Caron et al. 2021, arXiv 2104.14294): a student matches the centred, sharpened output of its own moving average across crops."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, networks, schedules
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.optim import Rule


@dataclasses.dataclass(frozen=True)
class DINO(Method):
    """teacher sees the views, student the views and the crops; loss = mean over pairs of H(teacher, student) (Algorithm 1)."""

    encoder: nn.Module = module("the encoder whose teacher's features are kept", name="vit")
    head: nn.Module = module("projection head with prototypes", name="dino_head")
    student_temperature: float = arg(0.1, "temperature of the student's softmax")
    teacher_temperature: float = arg(0.04, "temperature of the teacher's softmax after the warm-up")
    warmup_teacher_temperature: float = arg(0.04, "teacher temperature at the start")
    warmup_teacher_epochs: float = arg(0.0, "epochs of linear teacher temperature warm-up")
    ema: float = arg(0.996, "teacher momentum at the start; rises to 1 by a cosine")
    ema_final: float = arg(1.0, "teacher momentum at the end")
    centre_momentum: float = arg(0.9, "momentum of the centre of the teacher's outputs")
    freeze_last_layer_steps: int = arg(0, "steps in which the student's prototypes do not move")

    @property
    def groups(self):
        return ((r"^head/last_layer/", Rule(freeze_until=self.freeze_last_layer_steps, weight_decay=1.0)),)

    def schedules(self, run):
        warm = dict(warmup_steps=run.epochs(self.warmup_teacher_epochs), warmup_start=self.warmup_teacher_temperature)
        return {
            "ema": schedules.cosine(self.ema, self.ema_final, run.steps),
            "teacher_temperature": schedules.constant(self.teacher_temperature, warmup="within", **warm),
        }

    def init(self, rng, batch):
        params, stats = networks.init(self.parts, rng, batch["views"])
        return params, {"stats": stats, **networks.teacher(params, stats), "centre": jnp.zeros(self.head.out)}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        parts = networks.unhurt(self.parts)
        teacher, teacher_stats = networks.over_crops(parts, extra["teacher"], extra["teacher_stats"], [batch["views"]], rng=r[0])
        student, stats = networks.over_crops(self.parts, params, extra["stats"], networks.views_of(batch), rng=r[1])  # (B, V + L, K)
        teacher = jax.lax.stop_gradient(teacher)
        return {"student": student, "teacher": teacher}, {**extra, "stats": stats, "teacher_stats": teacher_stats}

    def objective(self, params, extra, encodings, batch, s):
        student, teacher = (jnp.moveaxis(encodings[k], 1, 0) for k in ("student", "teacher"))  # crop-major (V, B, K)
        temperatures = dict(student_temperature=self.student_temperature, teacher_temperature=s["teacher_temperature"])
        loss = losses.dino(student, teacher, extra["centre"], **temperatures)
        centre = losses.update_centre(extra["centre"], teacher, self.centre_momentum)
        entropy = losses.entropy((teacher - extra["centre"]) / s["teacher_temperature"]).mean()
        usage = losses.entropy_of_mean((teacher - extra["centre"]) / s["teacher_temperature"])
        return loss, ({**extra, "centre": centre}, {"teacher_entropy": entropy, "prototype_entropy": usage})

    def after_step(self, params, extra, s):
        return networks.follow(extra, params, s["ema"])

    def embed(self, params, extra, batch):
        return networks.features(self.encoder, extra["teacher"], extra["teacher_stats"], batch["image"])
