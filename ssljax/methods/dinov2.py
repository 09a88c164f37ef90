"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193): DINO and iBOT with Sinkhorn and a head each, KoLeo; DINOv3's Gram anchoring."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks, schedules, trees
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.optim import Rule


@dataclasses.dataclass(frozen=True)
class DINOv2(Method):
    """loss = DINO's over class tokens + patch_weight * iBOT's at masked patches + koleo_weight * KoLeo of the views' class tokens
    + gram_weight * Gram anchoring (section 4; Simeoni et al. 2025, section 4.2)."""

    encoder: nn.Module = module("the encoder whose teacher's features are kept", name="vit", mask_token=True)
    head: nn.Module = module("projection head with prototypes of class tokens", name="dino_head", out=65536)
    patch_head: nn.Module = module("projection head with prototypes of patches", name="dino_head", out=65536)
    patch_weight: float = arg(1.0, "weight of the loss at masked patches")
    koleo_weight: float = arg(0.1, "weight of KoLeo, on the class tokens of each large view")
    gram_weight: float = arg(0.0, "weight of Gram anchoring; 0: none, and no Gram teacher")
    gram_start: int = arg(0, "first step with Gram anchoring")
    gram_every: int = arg(10_000, "steps after which the Gram teacher becomes the teacher again")
    mask_ratio: tuple = arg((0.1, 0.5), "share of a masked view's patches: least, most")
    mask_chance: float = arg(0.5, "probability that a view is masked at all")
    student_temperature: float = arg(0.1, "temperature of the student's softmax")
    teacher_temperature: float = arg(0.07, "temperature of the teacher's assignments after the warm-up")
    warmup_teacher_temperature: float = arg(0.04, "teacher temperature at the start")
    warmup_teacher_epochs: float = arg(30.0, "epochs of linear teacher temperature warm-up")
    sinkhorn: int = arg(3, "iterations of Sinkhorn, over the batch's class tokens and over its masked patches")
    ema: float = arg(0.992, "teacher momentum at the start; rises to the final one by a cosine")
    ema_final: float = arg(1.0, "teacher momentum at the end")
    freeze_last_layer_steps: int = arg(0, "steps in which the student's prototypes do not move")

    @property
    def groups(self):
        return ((r"head/last_layer/", Rule(freeze_until=self.freeze_last_layer_steps, weight_decay=1.0)),)

    def schedules(self, run):
        warm = dict(warmup_steps=run.epochs(self.warmup_teacher_epochs), warmup_start=self.warmup_teacher_temperature, warmup="within")
        plans = {
            "ema": schedules.cosine(self.ema, self.ema_final, run.steps),
            "teacher_temperature": schedules.constant(self.teacher_temperature, **warm),
        }
        if self.gram_weight:
            plans["gram_weight"] = lambda step: self.gram_weight * (step >= self.gram_start).astype(jnp.float32)
            plans["gram_refresh"] = lambda step: ((step + 1 - self.gram_start) % self.gram_every == 0).astype(jnp.float32)
        return plans

    @property
    def parts(self):
        return {"encoder": self.encoder, "head": self.head}

    def init(self, rng, batch):
        r = jax.random.split(rng)
        params, stats = networks.init(self.parts, r[0], batch["views"])
        width = jnp.zeros((1, self.encoder.width))
        params["patch_head"], stats["patch_head"] = models.init(self.patch_head, r[1], width, train=False)
        extra = {"stats": stats, **networks.teacher(params, stats)}
        return params, extra | ({"gram": trees.copy(params["encoder"])} if self.gram_weight else {})

    def encode(self, params, extra, batch, rng, s):
        r, views = jax.random.split(rng, 4), batch["views"]
        cut = dict(ratio=self.mask_ratio, chance=self.mask_chance)
        mask, ids = networks.some_blocks(r[0], models.flat_views(views), self.encoder.patch_size, **cut)  # (B * V, N), (B * V, M)
        teacher, extra = networks.taught(self.parts, extra, views, rng=r[1], tokens=True)
        head = extra["teacher"]["patch_head"], extra["teacher_stats"]["patch_head"]
        targets = networks.at_patches(self.patch_head, *head, teacher["encoder"], ids)  # (B, V, M, K)
        student, stats = networks.forward(self.parts, params, extra["stats"], views, rng=r[2], tokens=True, mask=mask)
        patches = networks.at_patches(self.patch_head, params["patch_head"], stats["patch_head"], student["encoder"], ids)
        logits = student["head"]
        if "crops" in batch:
            crops, stats = networks.forward(self.parts, params, stats, batch["crops"], rng=r[3])
            logits = jnp.concatenate([logits, crops["head"]], axis=1)  # (B, V + L, K)
        masked = jnp.take_along_axis(mask, ids, axis=1).reshape(patches.shape[:-1])  # (B, V, M)
        encodings = {"teacher": teacher["head"], "targets": jax.lax.stop_gradient(targets), "masked": masked}
        encodings |= {"student": logits, "patches": patches, "cls": student["encoder"]["cls"]}  # cls: (B, V, D)
        if self.gram_weight:
            anchor, _ = models.apply(self.encoder, extra["gram"], {}, models.flat_views(views), train=False)
            own = student["encoder"]["patches"]
            encodings["gram"] = jax.vmap(losses.gram)(own, anchor["patches"].reshape(own.shape))  # (B,)
        return encodings, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        student, teacher = (jnp.moveaxis(encodings[k], 1, 0) for k in ("student", "teacher"))  # (V + L, B, K), (V, B, K)
        even = dict(epsilon=s["teacher_temperature"], iterations=self.sinkhorn)
        q = losses.sinkhorn(teacher.reshape(-1, teacher.shape[-1]), **even).reshape(teacher.shape)
        class_loss = losses.across_crops(q, student, temperature=self.student_temperature)
        masked, targets = encodings["masked"], encodings["targets"]
        p = losses.sinkhorn(targets.reshape(-1, targets.shape[-1]), **even, mask=masked.reshape(-1)).reshape(targets.shape)
        patch_loss = losses.ibot(encodings["patches"], p, masked, temperature=self.student_temperature)
        koleo = sum(losses.koleo(cls) for cls in jnp.moveaxis(encodings["cls"], 1, 0))

        metrics = {"class_loss": class_loss, "patch_loss": patch_loss, "koleo": koleo, "masked_patches": masked.sum(-1).mean()}
        metrics |= {"teacher_entropy": losses.entropy(jnp.log(q)).mean(), "prototype_entropy": losses.entropy_of_mean(jnp.log(q))}
        loss = class_loss + self.patch_weight * patch_loss + self.koleo_weight * koleo
        if self.gram_weight:
            metrics["gram"] = encodings["gram"].mean()
            loss += s["gram_weight"] * metrics["gram"]
        return loss, (extra, metrics)

    def after_step(self, params, extra, s):
        extra = networks.follow(extra, params, s["ema"])
        if self.gram_weight:
            refresh = lambda old, new: jnp.where(s["gram_refresh"] > 0, new, old)  # noqa: E731
            extra["gram"] = jax.tree.map(refresh, extra["gram"], extra["teacher"]["encoder"])
        return extra

    def embed(self, params, extra, batch):
        return networks.features(self.encoder, extra["teacher"], extra["teacher_stats"], batch["image"])
