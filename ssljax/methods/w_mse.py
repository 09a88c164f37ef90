"""W-MSE (Ermolov et al. 2021, arXiv 2007.06346): views agree after the batch is whitened, which leaves no room to collapse."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class WMSE(Method):
    """z = projector(encoder(view)); w = z whitened by the Cholesky factor of a slice's covariance; mean 2 - 2 cos(w, w') (section 3)."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP in front of the loss, narrow", name="mlp", hidden=1024, out=64)
    size: int = arg(128, "examples that are whitened together, at most; about twice the width of the projector's output")
    repeats: int = arg(1, "times that the batch is cut anew into such slices, over which the loss is averaged")
    shrinkage: float = arg(0.0, "how far covariances are pulled to the identity, 0 to 1")

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"], rng=r[0])
        z = out["projector"]  # (B, V, D)
        return {"z": z, "noise": jax.random.uniform(r[1], (len(z), self.repeats))}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        z, orders = encodings["z"], jnp.argsort(encodings["noise"], axis=0).T  # permutations of the batch, (I, B)
        loss = losses.w_mse(jnp.moveaxis(z, 1, 0), size=min(self.size, len(z)), orders=orders, shrinkage=self.shrinkage)
        return loss, (extra, {"whitened_similarity": 1 - loss / 2, "feature_std": losses.feature_std(z)})
