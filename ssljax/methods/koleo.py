"""KoLeo (Sablayrolles et al. 2019, arXiv 1806.03198), a term for a `sum`: features of a view are pushed from their nearest neighbours."""

import dataclasses

import flax.linen as nn

from ssljax import losses, networks
from ssljax.fields import module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class KoLeo(Method):
    """loss = sum over views of -mean log distance to the nearest of the batch (DINOv2, Oquab et al. 2023, section 4): a regulariser."""

    encoder: nn.Module = module("the encoder whose features are spread", name="vit")

    def init(self, rng, batch):
        params, stats = networks.init({"encoder": self.encoder}, rng, batch["views"])
        return params, {"stats": stats}

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward({"encoder": self.encoder}, params, extra["stats"], batch["views"], rng=rng)
        return {"h": out["encoder"]["pooled"]}, {**extra, "stats": stats}  # (B, V, D)

    def objective(self, params, extra, encodings, batch, s):
        h = encodings["h"]
        loss = sum(losses.koleo(h[:, view]) for view in range(h.shape[1]))
        return loss, (extra, {"feature_std": losses.feature_std(h)})
