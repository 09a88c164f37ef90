"""TiCo (Zhu et al. 2022, arXiv 2206.10698): views agree, and features avoid the directions that a running covariance says are crowded."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, networks, schedules
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class TiCo(Method):
    """z = unit projector(encoder(view)); loss = 1 - z . teacher's z' + rho z.T C z, C a moving average of z z.T (Algorithm 1)."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP in front of the loss; the teacher has one as well", name="mlp", hidden=4096, out=256)
    covariance_momentum: float = arg(0.9, "the paper's beta: momentum of the covariance")
    weight: float = arg(20.0, "the paper's rho: weight of the covariance contrast")
    ema: float = arg(0.99, "teacher momentum at the start; rises to 1 by a cosine")
    ema_final: float = arg(1.0, "teacher momentum at the end")

    def schedules(self, run):
        return {"ema": schedules.cosine(self.ema, self.ema_final, run.steps)}

    def init(self, rng, batch):
        params, stats = networks.init(self.parts, rng, batch["views"])
        width = self.projector.out
        return params, {"stats": stats, **networks.teacher(params, stats), "covariance": jnp.zeros((width, width))}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        student, stats = networks.forward(self.parts, params, extra["stats"], batch["views"][:, :1], rng=r[0])
        teacher, extra = networks.taught(self.parts, extra, batch["views"][:, 1:2], rng=r[1])
        z, target = (losses.normalise(out["projector"][:, 0]) for out in (student, teacher))  # (B, D)
        return {"z": z, "target": target}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        z, target = encodings["z"], encodings["target"]
        covariance = losses.update_covariance(extra["covariance"], z, self.covariance_momentum)
        loss = losses.tico(z, target, covariance, weight=self.weight)
        similarity = jnp.sum(z * target, axis=-1).mean()
        metrics = {"target_similarity": similarity, "feature_std": losses.feature_std(z)}
        return loss, ({**extra, "covariance": covariance}, metrics)

    def after_step(self, params, extra, s):
        return networks.follow(extra, params, s["ema"])
