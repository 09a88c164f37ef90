"""CPC (van den Oord et al. 2018, arXiv 1807.03748; v2, arXiv 1905.09272): from the patches above, which patch of all comes below?"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class CPC(Method):
    """z = encoder(patches of the view); c = context(z), which never looks down; p_k = W_k c for the k-th row below; InfoNCE of p_k against
    all patches of the batch (equation 4; v2, appendix A.2). Features are the mean over an image's patches."""

    encoder: nn.Module = module("the encoder, run on overlapping patches", name="resnet")
    context: nn.Module = module("network over the grid of patches", name="ssljax.models.context:RowContext")
    # Without a bias, which would move all logits alike.
    projector: nn.Module = module("head of the patches to be found", name="mlp", out=64, layers=1, bias=(False, False))
    side: int = arg(7, "patches a side; each overlaps its neighbours by half")
    rows: int = arg(5, "how many rows below are predicted, fewer than there are")
    scale: float = arg(0.1, "factor of the similarities")
    drop_colours: float = arg(0.5, "probability that a patch keeps one of its three colours: colour alone tells pictures apart")

    @property
    def predictor(self):
        return models.module_class("mlp")(layers=1, out=self.rows * self.projector.out)  # W_1 ... W_rows

    def patches(self, images):
        """(B, H, W, 3) -> (B, side^2, p, p, 3), row by row."""
        step = images.shape[1] // (self.side + 1)
        at = step * np.arange(self.side)[:, None] + np.arange(2 * step)  # (side, p)
        cut = jnp.moveaxis(images[:, at][:, :, :, at], 3, 2)  # (B, side, p, side, p, 3) -> (B, side, side, p, p, 3)
        return cut.reshape(len(images), -1, *cut.shape[3:])

    def dropped(self, rng, patches):
        """Some patches in one of their colours alone."""
        r = jax.random.split(rng)
        kept = jax.nn.one_hot(jax.random.randint(r[0], patches.shape[:2], 0, 3), 3)[:, :, None, None]
        drop = jax.random.bernoulli(r[1], self.drop_colours, (*patches.shape[:2], 1, 1, 1))
        return jnp.where(drop, (kept * patches).sum(-1, keepdims=True), patches)

    def init(self, rng, batch):
        r = jax.random.split(rng, 4)
        parts = {"encoder": self.encoder, "projector": self.projector}
        patches = self.patches(batch["views"][:, 0])
        params, stats = networks.init(parts, r[0], patches)
        out, _ = networks.forward({"encoder": self.encoder}, params, stats, patches, train=False)
        z = self.on_grid(out["encoder"]["pooled"])
        params["context"], stats["context"] = models.init(self.context, r[1], z, train=False)
        params["predictor"], stats["predictor"] = models.init(self.predictor, r[2], z, train=False)
        return params, {"stats": stats}

    def on_grid(self, x):
        """(B, side^2, D) -> (B, side, side, D)."""
        return x.reshape(len(x), self.side, self.side, -1)

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng, 3)
        patches = self.dropped(r[0], self.patches(batch["views"][:, 0]))
        parts = {"encoder": self.encoder, "projector": self.projector}
        out, stats = networks.forward(parts, params, extra["stats"], patches, rng=r[1])
        context, _ = models.apply(self.context, params["context"], {}, self.on_grid(out["encoder"]["pooled"]), train=True, rng=r[2])
        prediction, _ = models.apply(self.predictor, params["predictor"], {}, context, train=True)  # (B, side, side, rows D)
        return {"target": self.on_grid(out["projector"]), "prediction": prediction}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        target, predictions = encodings["target"], jnp.split(encodings["prediction"], self.rows, axis=-1)
        rows = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731  (B, h, w, D) -> (B h w, D)
        every, loss = rows(target), 0.0
        for k, p in enumerate(predictions, start=1):
            loss += losses.mixed_info_nce(rows(p[:, :-k]), every, rows(target[:, k:]), temperature=1 / self.scale) / self.rows
        return loss, (extra, {"information": jnp.log(len(every)) - loss})  # the bound on it, in nats (equation 5)

    def embed(self, params, extra, batch):
        parts = {"encoder": self.encoder}
        out, _ = networks.forward(parts, params, extra["stats"], self.patches(batch["image"]), train=False)
        return {"features": out["encoder"]["pooled"].mean(1)}
