"""MoCHi (Kalantidis et al. 2020, arXiv 2010.01028): MoCo with negatives made up for each query, by mixing the hardest of its queue."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, networks, schedules
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class MoCHi(Method):
    """MoCo's InfoNCE with more negatives a query: normalise(a n_i + (1 - a) n_j) of its hardest n (equation 2), a in (0, 1), and
    normalise(b q + (1 - b) n_j), b in (0, 0.5) (equation 3). The keys' statistics: see moco.py."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("head in front of the loss", name="mlp", hidden=2048, out=128, norm="none")
    temperature: float = arg(0.2, "temperature of the softmax over similarities")
    queue: int = arg(65536, "keys that are kept, at least a batch of them")
    ema: float = arg(0.999, "momentum of the teacher")
    hardest: int = arg(1024, "N, how many of the queue's most similar keys count as hard")
    mixtures: int = arg(1024, "s, negatives made of two hard ones, for each query")
    towards: int = arg(128, "s', negatives made of a hard one and the query itself")
    warmup_epochs: float = arg(10.0, "epochs of plain MoCo at the start")

    def schedules(self, run):
        start = run.epochs(self.warmup_epochs)
        return {"ema": schedules.constant(self.ema), "mixing": lambda step: (step >= start).astype(jnp.float32)}

    def init(self, rng, batch):
        r = jax.random.split(rng)
        params, stats = networks.init(self.parts, r[0], batch["views"])
        return params, {"stats": stats, **networks.teacher(params, stats), **networks.queue(r[1], self.queue, self.projector.out)}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng, 4)
        taught, extra = networks.taught(self.parts, extra, batch["views"][:, 1:2], rng=r[0])
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"][:, :1], rng=r[1])
        q, k = (losses.normalise(o["projector"][:, 0]) for o in (out, taught))  # (B, D)
        drawn, hardest = (len(q), self.mixtures + self.towards), min(self.hardest, self.queue)
        draws = {"which": jax.random.randint(r[2], (*drawn, 2), 0, hardest), "share": jax.random.uniform(r[3], drawn)}
        return {"q": q, "k": k, **draws}, {**extra, "stats": stats}

    def negatives(self, q, queue, which, share):
        """-> (B, mixtures + towards, D), constant. which: int (..., 2), two of the hardest; share: in [0, 1)."""
        ids = losses.hardest(q, queue, min(self.hardest, self.queue))  # (B, N)
        one, other = (queue[jnp.take_along_axis(ids, which[..., i], axis=1)] for i in (0, 1))  # (B, S, D)
        toward = (jnp.arange(which.shape[1]) >= self.mixtures)[:, None]
        share = share[..., None] * jnp.where(toward, 0.5, 1.0)
        return jax.lax.stop_gradient(losses.normalise(share * jnp.where(toward, q[:, None], one) + (1 - share) * other))

    def objective(self, params, extra, encodings, batch, s):
        q, k, queue = encodings["q"], encodings["k"], extra["queue"]
        made = self.negatives(q, queue, encodings["which"], encodings["share"])
        similarity = losses.rowwise(q[:, None], made)  # (B, S)
        own = similarity / self.temperature + jnp.log(jnp.maximum(s["mixing"], 1e-30))  # of no weight during the warm-up
        loss = losses.info_nce(q, k, queue=queue, own=own, temperature=self.temperature)
        metrics = {"positive_similarity": losses.rowwise(q, k).mean(), "made_similarity": similarity.mean()}
        return loss, (networks.enqueue(extra, k), {**metrics, **networks.staleness(extra, k)})

    def after_step(self, params, extra, s):
        return networks.follow(extra, params, s["ema"])
