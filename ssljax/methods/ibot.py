"""iBOT (Zhou et al. 2022, arXiv 2111.07832): DINO on class tokens and on masked patches, whose targets a teacher gives that sees them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks, schedules
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.optim import Rule


@dataclasses.dataclass(frozen=True)
class IBOT(Method):
    """loss = DINO's over class tokens of views and crops + patch_weight * cross entropy at the masked patches of views (section 3.1)."""

    encoder: nn.Module = module("the encoder whose teacher's features are kept", name="vit", mask_token=True)
    head: nn.Module = module("projection head with prototypes, of class tokens and patches alike", name="dino_head", out=8192)
    patch_weight: float = arg(1.0, "the paper's lambda_2: weight of the loss at masked patches")
    mask_ratio: tuple = arg((0.1, 0.5), "share of a masked view's patches: least, most")
    mask_chance: float = arg(0.5, "probability that a view is masked at all")
    student_temperature: float = arg(0.1, "temperature of the student's softmax")
    teacher_temperature: float = arg(0.07, "temperature of the teacher's softmax after the warm-up")
    warmup_teacher_temperature: float = arg(0.04, "teacher temperature at the start")
    patch_temperature: float = arg(0.07, "temperature of the teacher's softmax of patches after the warm-up, from the same start")
    warmup_teacher_epochs: float = arg(30.0, "epochs of linear teacher temperature warm-up")
    ema: float = arg(0.996, "teacher momentum at the start; rises to the final one by a cosine")
    ema_final: float = arg(1.0, "teacher momentum at the end")
    centre_momentum: float = arg(0.9, "momentum of both centres of the teacher's outputs")
    freeze_last_layer_steps: int = arg(0, "steps in which the student's prototypes do not move")

    @property
    def groups(self):
        return ((r"^head/last_layer/", Rule(freeze_until=self.freeze_last_layer_steps, weight_decay=1.0)),)

    def schedules(self, run):
        warm = dict(warmup_steps=run.epochs(self.warmup_teacher_epochs), warmup_start=self.warmup_teacher_temperature, warmup="within")
        return {
            "ema": schedules.cosine(self.ema, self.ema_final, run.steps),
            "teacher_temperature": schedules.constant(self.teacher_temperature, **warm),
            "patch_temperature": schedules.constant(self.patch_temperature, **warm),
        }

    def init(self, rng, batch):
        params, stats = networks.init(self.parts, rng, batch["views"])
        centres = {"centre": jnp.zeros(self.head.out), "patch_centre": jnp.zeros(self.head.out)}
        return params, {"stats": stats, **networks.teacher(params, stats), **centres}

    def encode(self, params, extra, batch, rng, s):
        r, views = jax.random.split(rng, 4), batch["views"]
        cut = dict(ratio=self.mask_ratio, chance=self.mask_chance)
        mask, ids = networks.some_blocks(r[0], models.flat_views(views), self.encoder.patch_size, **cut)  # (B * V, N), (B * V, M)
        teacher, extra = networks.taught(self.parts, extra, views, rng=r[1], tokens=True)
        targets = networks.at_patches(self.head, extra["teacher"]["head"], extra["teacher_stats"]["head"], teacher["encoder"], ids)
        student, stats = networks.forward(self.parts, params, extra["stats"], views, rng=r[2], tokens=True, mask=mask)
        patches = networks.at_patches(self.head, params["head"], stats["head"], student["encoder"], ids)  # (B, V, M, K)
        logits = student["head"]
        if "crops" in batch:
            crops, stats = networks.forward(self.parts, params, stats, batch["crops"], rng=r[3])
            logits = jnp.concatenate([logits, crops["head"]], axis=1)  # (B, V + L, K)
        masked = jnp.take_along_axis(mask, ids, axis=1).reshape(patches.shape[:-1])  # (B, V, M)
        encodings = {"teacher": teacher["head"], "targets": jax.lax.stop_gradient(targets), "masked": masked}
        return encodings | {"student": logits, "patches": patches}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        student, teacher = (jnp.moveaxis(encodings[k], 1, 0) for k in ("student", "teacher"))  # (V + L, B, K), (V, B, K)
        temperatures = dict(student_temperature=self.student_temperature, teacher_temperature=s["teacher_temperature"])
        class_loss = losses.dino(student, teacher, extra["centre"], **temperatures)
        masked = encodings["masked"]
        targets = losses.centred(encodings["targets"], extra["patch_centre"], s["patch_temperature"])
        patch_loss = losses.ibot(encodings["patches"], targets, masked, temperature=self.student_temperature)

        sharp = (teacher - extra["centre"]) / s["teacher_temperature"]
        metrics = {"class_loss": class_loss, "patch_loss": patch_loss, "masked_patches": masked.sum(-1).mean()}
        metrics |= {"teacher_entropy": losses.entropy(sharp).mean(), "prototype_entropy": losses.entropy_of_mean(sharp)}
        mean = jnp.sum(encodings["targets"] * masked[..., None], axis=(0, 1, 2)) / jnp.maximum(masked.sum(), 1)
        centres = {"centre": teacher, "patch_centre": mean}
        extra = {**extra, **{name: losses.update_centre(extra[name], x, self.centre_momentum) for name, x in centres.items()}}
        return class_loss + self.patch_weight * patch_loss, (extra, metrics)

    def after_step(self, params, extra, s):
        return networks.follow(extra, params, s["ema"])

    def embed(self, params, extra, batch):
        return networks.features(self.encoder, extra["teacher"], extra["teacher_stats"], batch["image"])
