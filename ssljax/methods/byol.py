"""BYOL (Grill et al. 2020, arXiv 2006.07733): a student predicts what its own moving average makes of another view; no negatives."""

import dataclasses

import flax.linen as nn
import jax

from ssljax import losses, networks, schedules
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class BYOL(Method):
    """p = predictor(projector(encoder(view))); z = the teacher's projector(encoder(other view)); |p - z|^2 of unit vectors (equation 2)."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP behind the encoder; the teacher has one as well", name="mlp", hidden=4096, out=256)
    predictor: nn.Module = module("MLP of the student alone", name="mlp", hidden=4096, out=256)
    ema: float = arg(0.996, "teacher momentum at the start; rises to the final one by a cosine")
    ema_final: float = arg(1.0, "teacher momentum at the end")

    def schedules(self, run):
        return {"ema": schedules.cosine(self.ema, self.ema_final, run.steps)}

    @property
    def target(self):
        return {"encoder": self.encoder, "projector": self.projector}

    @property
    def parts(self):
        return {**self.target, "predictor": self.predictor}

    def init(self, rng, batch):
        params, stats = networks.init(self.parts, rng, batch["views"])
        return params, {"stats": stats, **networks.teacher(params, stats, self.target)}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        student, stats = networks.forward(self.parts, params, extra["stats"], batch["views"], rng=r[0])
        teacher, extra = networks.taught(self.target, extra, batch["views"], rng=r[1])
        return {"p": student["predictor"], "z": teacher["projector"]}, {**extra, "stats": stats}  # (B, 2, D) each

    def objective(self, params, extra, encodings, batch, s):
        p, z = encodings["p"], encodings["z"]
        loss = losses.byol(p[:, 0], p[:, 1], z[:, 0], z[:, 1])
        return loss, (extra, {"target_similarity": 1 - loss / 4, "feature_std": losses.feature_std(z)})

    def after_step(self, params, extra, s):
        return networks.follow(extra, params, s["ema"])
