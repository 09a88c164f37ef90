"""SwAV (Caron et al. 2020, arXiv 2006.09882): crops of an image predict each other's prototypes, which share the batch evenly."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.optim import Rule


@dataclasses.dataclass(frozen=True)
class SwAV(Method):
    """scores = cosines of projector(encoder(crop)) and prototypes; a view's Sinkhorn code is the target of the others (Algorithm 1)."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP in front of the prototypes", name="mlp", hidden=2048, out=128)
    prototypes: int = arg(3000, "number of prototypes")
    temperature: float = arg(0.1, "temperature of the softmax over prototypes")
    epsilon: float = arg(0.05, "smoothness of the codes: small is sharp")
    sinkhorn: int = arg(3, "iterations of Sinkhorn")
    queue: int = arg(0, "features of earlier batches that are assigned together with the batch; 0: none")
    queue_start_epochs: float = arg(0.0, "epochs before the queue is used; it has to be full as well")
    freeze_prototypes_steps: int = arg(0, "steps in which the prototypes do not move")

    @property
    def groups(self):
        return ((r"^prototypes$", Rule(freeze_until=self.freeze_prototypes_steps)),)

    def schedules(self, run):
        start = max(run.epochs(self.queue_start_epochs), -(-self.queue // run.batch))
        return {"queue_used": lambda step: (step >= start).astype(jnp.float32)} if self.queue else {}

    def init(self, rng, batch):
        r = jax.random.split(rng)
        params, stats = networks.init(self.parts, r[0], batch["views"])
        extra, width = {"stats": stats}, self.projector.out
        if self.queue:
            extra |= {"queue": jnp.zeros((self.queue, batch["views"].shape[1], width)), "pointer": jnp.zeros((), jnp.int32)}
        return {**params, "prototypes": jax.random.normal(r[1], (self.prototypes, width)) * width**-0.5}, extra

    def encode(self, params, extra, batch, rng, s):
        z, stats = networks.over_crops(self.parts, params, extra["stats"], networks.views_of(batch), rng=rng)
        return {"z": losses.normalise(z)}, {**extra, "stats": stats}  # (B, V + L, D)

    def objective(self, params, extra, encodings, batch, s):
        z, views, queue, stale = encodings["z"], batch["views"].shape[1], {}, {}
        scores = jnp.moveaxis(losses.cosines(z, params["prototypes"]), 1, 0)  # (V + L, B, K)
        if self.queue:
            earlier = losses.cosines(extra["queue"], params["prototypes"])  # (M, V, K)
            queue = dict(queue=jnp.moveaxis(earlier, 1, 0), queue_used=s["queue_used"])
            stale = networks.staleness(extra, z[:, :views])
            extra = networks.enqueue(extra, jax.lax.stop_gradient(z[:, :views]))
        assign = dict(epsilon=self.epsilon, iterations=self.sinkhorn)
        loss = losses.swav(scores, views=views, temperature=self.temperature, **assign, **queue)
        usage = losses.entropy_of_mean(scores / self.temperature)
        return loss, (extra, {"prototype_entropy": usage, "feature_std": losses.feature_std(z), **stale})
