"""LeJEPA (Balestriero and LeCun 2025, arXiv 2511.08544): views predict the mean of the large ones, and are an isotropic Gaussian."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class LeJEPA(Method):
    """z = projector(encoder(crop)); loss = (1 - lambda) * distance to the mean of the large views + lambda * SIGReg (Algorithm 2)."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP in front of the loss", name="mlp", hidden=2048, out=64, layers=3)
    weight: float = arg(0.05, "the paper's lambda: weight of SIGReg; views' agreement has 1 - lambda")
    directions: int = arg(1024, "random directions a step on which features are tested")

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        z, stats = networks.over_crops(self.parts, params, extra["stats"], networks.views_of(batch), rng=r[0])  # (B, V + L, D)
        return {"z": z, "key": jnp.tile(r[1], (len(z), 1))}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        z = jnp.moveaxis(encodings["z"], 1, 0)  # (V + L, B, D)
        directions = losses.normalise(jax.random.normal(encodings["key"][0], (self.directions, z.shape[-1]))).T  # (D, A)
        large = batch["views"].shape[1]
        loss = losses.lejepa(z, directions, large=large, weight=self.weight)
        prediction = jnp.square(z - z[:large].mean(0)).mean()
        return loss, (extra, {"prediction_error": prediction, "feature_std": losses.feature_std(encodings["z"])})
