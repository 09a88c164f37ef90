"""NNCLR (Dwibedi et al. 2021, arXiv 2104.14548): the positive is not the other view but its nearest neighbour among earlier images."""

import dataclasses

import flax.linen as nn
import jax

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class NNCLR(Method):
    """z = projector(encoder(views)); p = predictor(z); InfoNCE of NN(z0, queue) and p1, and of NN(z1, queue) and p0 (Algorithm 1)."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("3-layer MLP", name="mlp", hidden=2048, out=256, layers=3, last_norm=True)
    predictor: nn.Module = module("2-layer MLP", name="mlp", hidden=4096, out=256)
    temperature: float = arg(0.1, "temperature of the softmax over similarities")
    queue: int = arg(98304, "support set: how many earlier projections are kept")

    def init(self, rng, batch):
        r = jax.random.split(rng)
        params, stats = networks.init(self.parts, r[0], batch["views"])
        return params, {"stats": stats, **networks.queue(r[1], self.queue, self.projector.out)}

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"], rng=rng)
        z, p = losses.normalise(out["projector"]), losses.normalise(out["predictor"])  # (B, 2, D)
        return {"z": jax.lax.stop_gradient(z), "p": p}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        z, p = encodings["z"], encodings["p"]
        near0, near1 = (losses.nearest_neighbours(z[:, v], extra["queue"]) for v in (0, 1))  # (B, D)
        loss0 = losses.info_nce(near0, p[:, 1], temperature=self.temperature)
        loss1 = losses.info_nce(near1, p[:, 0], temperature=self.temperature)
        metrics = {"positive_similarity": (near0 * p[:, 1]).sum(-1).mean(), "neighbour_similarity": (near0 * z[:, 0]).sum(-1).mean()}
        return (loss0 + loss1) / 2, (networks.enqueue(extra, z[:, 0]), {**metrics, **networks.staleness(extra, z[:, 0])})
