"""ReSSL (Zheng et al. 2021, arXiv 2107.09282): how a weak view relates to earlier images is what a strong view should tell."""

import dataclasses

import flax.linen as nn
import jax

from ssljax import losses, networks, schedules
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class ReSSL(Method):
    """q = student(views), strongly augmented; k = teacher(weak); H(softmax(k . queue / sharp), softmax(q . queue / soft)) (Algorithm 1).

    Two groups of one view each in config.augment: "views", the strong ones, and "weak"."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP in front of the loss", name="mlp", hidden=4096, out=512)
    student_temperature: float = arg(0.1, "temperature of the student's relations")
    teacher_temperature: float = arg(0.04, "temperature of the teacher's, sharper")
    queue: int = arg(131072, "earlier images that relations are with, a number that the devices divide")
    ema: float = arg(0.999, "momentum of the teacher")

    def schedules(self, run):
        return {"ema": schedules.constant(self.ema)}

    def init(self, rng, batch):
        r = jax.random.split(rng)
        params, stats = networks.init(self.parts, r[0], batch["weak"])
        return params, {"stats": stats, **networks.teacher(params, stats), **networks.queue(r[1], self.queue, self.projector.out)}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        taught, extra = networks.taught(self.parts, extra, batch["weak"], rng=r[0])
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"], rng=r[1])
        q, k = (losses.normalise(o["projector"][:, 0]) for o in (out, taught))  # (B, D)
        return {"q": q, "k": k}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        q, k, queue = encodings["q"], encodings["k"], extra["queue"]
        sharp = dict(teacher_temperature=self.teacher_temperature)
        loss = losses.ressl(q, k, queue, student_temperature=self.student_temperature, **sharp)
        entropy = losses.ressl(k, k, queue, student_temperature=self.teacher_temperature, **sharp)  # H(p, p)
        metrics = {"teacher_entropy": entropy, "positive_similarity": losses.rowwise(q, k).mean()}
        return loss, (networks.enqueue(extra, k), {**metrics, **networks.staleness(extra, k)})

    def after_step(self, params, extra, s):
        return networks.follow(extra, params, s["ema"])
