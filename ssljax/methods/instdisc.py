"""InstDisc (Wu et al. 2018, arXiv 1805.01978): every image is a class of its own, its prototype a row of a memory bank."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class InstDisc(Method):
    """v = normalise(projector(encoder(view))); v is told from all images' rows of the bank by NCE (equation 7), or by the whole softmax
    (equation 2, noise=0); then its own row moves towards v.

    The bank lies whole on every data-parallel device, split over fsdp. An image draws `noise` rows, and all images of the batch are held
    against all draws: one product of matrices, where the paper gathers thousands of rows for each image."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("head in front of the loss", name="mlp", out=128, layers=1)
    examples: int = arg(1_281_167, "rows of the bank: training examples, whose ids are below it")
    noise: int = arg(16, "rows that each image of a batch draws (the paper's 4,096 at a batch of 256); 0: the whole softmax")
    temperature: float = arg(0.07, "temperature of the softmax over similarities")
    momentum: float = arg(0.5, "share of the old row when an image's row moves")
    proximal: float = arg(0.0, "weight of |v - its row|^2 (equation 10; 30 in the paper's CIFAR runs)")

    def schedules(self, run):
        networks.check_bank(self.examples, run)
        return {}

    def init(self, rng, batch):
        r = jax.random.split(rng)
        params, stats = networks.init(self.parts, r[0], batch["views"])
        bank = networks.directions(r[1], self.examples, self.projector.out)
        return params, {"stats": stats, "bank": bank, "log_mean": jnp.zeros(())}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"][:, :1], rng=r[0])
        noise = jax.random.randint(r[1], (len(batch["views"]), self.noise), 0, self.examples)
        return {"v": losses.normalise(out["projector"][:, 0]), "noise": noise}, {**extra, "stats": stats}  # (B, D), (B, noise)

    def objective(self, params, extra, encodings, batch, s):
        v, bank, log_mean = encodings["v"], extra["bank"], extra["log_mean"]
        own = bank[batch["id"]]  # (B, D)
        if self.noise:
            noise = losses.similarities(v, bank[encodings["noise"].reshape(-1)]) / self.temperature  # (B, B noise)
            log_mean = jnp.where(log_mean == 0, losses.log_mean_exp(noise), log_mean)  # of the first batch, then constant (equation 8)
            loss = losses.nce(losses.rowwise(v, own) / self.temperature, noise, log_mean)
        else:
            loss = losses.mixed_info_nce(v, bank, own, temperature=self.temperature)
        loss = loss + self.proximal * jnp.square(v - own).sum(-1).mean()
        extra = {**extra, "bank": networks.remember(bank, batch["id"], v, self.momentum), "log_mean": log_mean}
        return loss, (extra, {"positive_similarity": losses.rowwise(v, own).mean()})
