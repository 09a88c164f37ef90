"""VICRegL (Bardes et al. 2022, arXiv 2210.01571): VICReg of whole views, and of patches that match by features or by place."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.errors import UserError
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class VICRegL(Method):
    """alpha * VICReg(projector(pooled)) + (1 - alpha) * VICReg(maps_projector(patches), matched) (section 3).

    Groups of views need `boxes`."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    projector: nn.Module = module("MLP on pooled features, wide", name="mlp", hidden=8192, out=8192, layers=3)
    maps_projector: nn.Module = module("MLP on every patch", name="mlp", hidden=512, out=512, layers=3)
    alpha: float = arg(0.75, "weight of the loss of whole views; that of patches has 1 - alpha")
    matches: tuple = arg((20, 4), "nearest pairs of patches that are kept, from a large view and back to it")
    invariance: float = arg(25.0, "the paper's lambda: weight of squared distances")
    variance: float = arg(25.0, "the paper's mu: weight of the hinge on standard deviations")
    covariance: float = arg(1.0, "the paper's nu: weight of squared covariances")

    @property
    def parts(self):
        return {"encoder": self.encoder, "projector": self.projector}

    def init(self, rng, batch):
        if "views_box" not in batch:
            raise UserError("method vicregl: set config.augment.views.boxes, and that of crops, so that it knows where patches lie")
        params, stats = networks.init(self.parts, rng, batch["views"])
        maps = networks.init({"encoder": self.encoder, "maps_projector": self.maps_projector}, rng, batch["views"])
        (params["maps_projector"], stats["maps_projector"]) = (tree["maps_projector"] for tree in maps)
        return params, {"stats": stats}

    def encode(self, params, extra, batch, rng, s):
        encodings, stats = {}, extra["stats"]
        for key, name in zip(jax.random.split(rng), ("views", "crops"), strict=True):
            if name in batch:
                out, stats = networks.forward(self.parts, params, stats, batch[name], rng=key, tokens=True)
                patches, head = out["encoder"]["patches"], "maps_projector"  # (B, V, N, D)
                maps, after = models.apply(self.maps_projector, params[head], stats[head], patches, train=True)
                encodings[name], stats = {"pooled": out["projector"], "maps": maps}, {**stats, head: after}
        return encodings, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        pooled, maps, places = [], [], []
        for name, z in encodings.items():
            where = _places(batch[f"{name}_box"], z["maps"].shape[2])
            for views, x in ((pooled, z["pooled"]), (maps, z["maps"]), (places, where)):
                views += [x[:, v] for v in range(x.shape[1])]
        weights = dict(alpha=self.alpha, invariance=self.invariance, variance=self.variance, covariance=self.covariance)
        loss = losses.vicregl(pooled, maps, places, large=batch["views"].shape[1], matches=self.matches, **weights)
        z = encodings["views"]
        hinges = {"variance_hinge": losses.variance_hinge(z["pooled"]), "map_variance_hinge": losses.variance_hinge(z["maps"])}
        return loss, (extra, hinges | {"feature_std": losses.feature_std(z["pooled"])})


def _places(boxes, count):
    """Boxes (B, V, 4) of views -> where in the image each of their `count` patches, row by row, has its centre: (B, V, count, 2)."""
    side = round(count**0.5)
    t = (jnp.arange(side) + 0.5) / side
    y, x = (boxes[..., i, None] + t * (boxes[..., i + 2, None] - boxes[..., i, None]) for i in (0, 1))  # (B, V, side)
    return jnp.stack([jnp.repeat(y, side, axis=-1), jnp.tile(x, side)], axis=-1)
