"""MSN (Assran et al. 2022, arXiv 2204.07141): views with patches left out take the prototypes of the whole view; all are used."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, networks, schedules
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class MSN(Method):
    """The teacher sees view 0 whole, anchors are the other views, masked, and the crops; H(teacher, anchor) - H(mean anchor) (eq. 1)."""

    encoder: nn.Module = module("the encoder whose teacher's features are kept; anchors cost it their visible patches", name="vit")
    projector: nn.Module = module("MLP in front of the prototypes", name="mlp", hidden=2048, out=256, layers=3)
    prototypes: int = arg(1024, "number of prototypes")
    mask_ratio: float = arg(0.15, "share of the patches of a large anchor that is left out")
    temperature: float = arg(0.1, "temperature of the softmax over prototypes")
    sharpening: float = arg(0.25, "temperature that sharpens the targets")
    sinkhorn: int = arg(0, "iterations of Sinkhorn on the targets; 0: none")
    regularisation: float = arg(1.0, "weight of the entropy of the mean prediction (me-max)")
    ema: float = arg(0.996, "teacher momentum at the start; rises to 1 linearly")
    ema_final: float = arg(1.0, "teacher momentum at the end")

    def schedules(self, run):
        return {"ema": schedules.linear(self.ema, self.ema_final, run.steps)}

    def init(self, rng, batch):
        r = jax.random.split(rng)
        params, stats = networks.init(self.parts, r[0], batch["views"])
        prototypes = networks.directions(r[1], self.prototypes, self.projector.out)
        return {**params, "prototypes": prototypes}, {"stats": stats, **networks.teacher(params, stats)}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng, 4)
        target, extra = networks.taught(self.parts, extra, batch["views"][:, :1], rng=r[0])
        views = batch["views"][:, 1:]
        rows, side = views.shape[0] * views.shape[1], self.encoder.patch_size
        noise = jax.random.uniform(r[1], (rows, views.shape[2] // side * (views.shape[3] // side)))
        keep, _, _ = losses.random_masking(noise, self.mask_ratio)  # (B * V, n)
        out, stats = networks.forward(self.parts, params, extra["stats"], views, rng=r[2], keep=keep)
        anchors = [out["projector"]]
        if "crops" in batch:
            out, stats = networks.forward(self.parts, params, stats, batch["crops"], rng=r[3])
            anchors.append(out["projector"])
        anchors = jnp.concatenate(anchors, axis=1)  # (B, V - 1 + L, D)
        return {"anchors": anchors, "target": target["projector"][:, 0]}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        student = jnp.moveaxis(losses.cosines(encodings["anchors"], params["prototypes"]), 1, 0)  # (V - 1 + L, B, K)
        teacher = losses.cosines(encodings["target"], params["prototypes"])  # (B, K)
        sharp = dict(sharpening=self.sharpening, iterations=self.sinkhorn)
        loss = losses.msn(student, teacher, temperature=self.temperature, regularisation=self.regularisation, **sharp)
        targets = teacher / (self.temperature * self.sharpening)
        metrics = {"teacher_entropy": losses.entropy(targets).mean(), "prototype_entropy": losses.entropy_of_mean(targets)}
        return loss, (extra, metrics | {"feature_std": losses.feature_std(encodings["target"])})

    def after_step(self, params, extra, s):
        return networks.follow(extra, params, s["ema"])

    def embed(self, params, extra, batch):
        return networks.features(self.encoder, extra["teacher"], extra["teacher_stats"], batch["image"])
