"""SupCon (Khosla et al. 2020, arXiv 2004.11362): all views of all images of a class agree, those of other classes do not."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class SupCon(Method):
    """z = projector(encoder(views)); every row of z against all others, its positives those of its label (equation 2, L_out)."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP in front of the loss", name="mlp", hidden=2048, out=128)
    temperature: float = arg(0.1, "temperature of the softmax over similarities")

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"], rng=rng)
        return {"z": losses.normalise(out["projector"])}, {**extra, "stats": stats}  # (B, V, D)

    def objective(self, params, extra, encodings, batch, s):
        z = encodings["z"]
        labels = jnp.repeat(batch["label"], z.shape[1])  # (B V,)
        loss = losses.supcon(models.flat_views(z), labels, temperature=self.temperature)
        return loss, (extra, {"positive_similarity": (z[:, 0] * z[:, 1]).sum(-1).mean()})
