"""MoCo (He et al. 2020, arXiv 1911.05722; v2, arXiv 2003.04297): a view finds its key, made by a slow teacher, in a queue of older keys."""

import dataclasses

import flax.linen as nn
import jax

from ssljax import losses, networks, schedules
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class MoCo(Method):
    """q = student(view 0); k = teacher(view 1); InfoNCE of q against k and the queue, which then takes k (Algorithm 1).

    v1: a linear projector (layers=1) and temperature 0.07; v2: an MLP, 0.2 and blur. The papers shuffle the keys over GPUs so that a
    query does not share its BatchNorm statistics with its key alone. Here statistics are of the whole global batch, the same for
    all queries and the same for all keys: they tell nothing about which belong together, and nothing is shuffled.
    """

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("head in front of the loss", name="mlp", hidden=2048, out=128, norm="none")
    temperature: float = arg(0.2, "temperature of the softmax over similarities")
    queue: int = arg(65536, "keys that are kept, at least a batch of them")
    ema: float = arg(0.999, "momentum of the teacher")

    def schedules(self, run):
        return {"ema": schedules.constant(self.ema)}

    def init(self, rng, batch):
        r = jax.random.split(rng)
        params, stats = networks.init(self.parts, r[0], batch["views"])
        return params, {"stats": stats, **networks.teacher(params, stats), **networks.queue(r[1], self.queue, self.projector.out)}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        taught, extra = networks.taught(self.parts, extra, batch["views"][:, 1:2], rng=r[0])
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"][:, :1], rng=r[1])
        q, k = (losses.normalise(o["projector"][:, 0]) for o in (out, taught))  # (B, D)
        return {"q": q, "k": k}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        q, k, queue = encodings["q"], encodings["k"], extra["queue"]
        loss = losses.info_nce(q, k, queue=queue, temperature=self.temperature)
        metrics = {"positive_similarity": (q * k).sum(-1).mean(), "negative_similarity": (q.mean(0) * queue.mean(0)).sum()}
        return loss, (networks.enqueue(extra, k), {**metrics, **networks.staleness(extra, k)})

    def after_step(self, params, extra, s):
        return networks.follow(extra, params, s["ema"])
