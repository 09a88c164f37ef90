"""Context encoders (Pathak et al. 2016, arXiv 1604.07379): fill a hole in the picture from what surrounds it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import models, networks
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.optim import Rule


@dataclasses.dataclass(frozen=True)
class ContextEncoder(Method):
    """L = w_rec |M (x - F((1 - M) x))|^2 / |M| + w_adv L_adv, whose discriminator learns in the same step (equations 1 to 3).

    One gradient serves both: the generator's loss sees the discriminator's weights as constants, the discriminator's the picture."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    decoder: nn.Module = module("from the pooled vector to the picture, thrown away afterwards", name="image_decoder")
    discriminator: nn.Module = module("real or filled", name="resnet", stages=(1, 1), bottleneck=False, width=16, stem="small", out=1)
    masks: str = arg("central", "where the hole is: half of each side, several squares, or any shape", ("central", "block", "region"))
    adversarial: float = arg(0.0, "weight of the adversarial loss; 0: none, and the discriminator rests. The paper: 0.001 to 0.999")

    @property
    def groups(self):
        return ((r"^discriminator/", Rule(lr=0.1)),) if self.adversarial else ()  # section 5: it learns ten times slower

    @property
    def parts(self):
        return {"encoder": self.encoder, "decoder": self.decoder}

    def init(self, rng, batch):
        r = jax.random.split(rng)
        params, stats = networks.init(self.parts, r[0], batch["views"])
        if self.adversarial:
            params["discriminator"], stats["discriminator"] = models.init(self.discriminator, r[1], batch["views"][:, 0], train=False)
        return params, {"stats": stats}

    def holes(self, rng, images):
        """(B, H, W, 1), 1 in the hole."""
        batch, height, width = images.shape[:3]
        row, column = jnp.arange(height)[:, None], jnp.arange(width)
        if self.masks == "central":
            inside = (abs(row - height / 2 + 0.5) < height / 4) & (abs(column - width / 2 + 0.5) < width / 4)
            return jnp.broadcast_to(inside[None, :, :, None], (batch, height, width, 1)).astype(jnp.float32)
        if self.masks == "block":  # three squares of a quarter to a half of the side, that may overlap
            side_key, at_key = jax.random.split(rng)
            side = jax.random.uniform(side_key, (3, batch, 1, 1, 1), minval=0.25, maxval=0.5) * height
            at = jax.random.uniform(at_key, (2, 3, batch, 1, 1, 1)) * (height - side)
            inside = lambda x, start: (x >= start) & (x < start + side)  # noqa: E731
            hole = inside(row[None, None, :, :, None], at[0]) & inside(column[None, None, None, :, None], at[1])
            return hole.any(0).astype(jnp.float32)
        # region: a quarter of the picture, bounded by a smooth random field
        field = jax.image.resize(jax.random.normal(rng, (batch, 4, 4, 1)), (batch, height, width, 1), "cubic")
        return (field > jnp.quantile(field, 0.75, axis=(1, 2), keepdims=True)).astype(jnp.float32)

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        images = batch["views"][:, 0]
        hole = self.holes(r[0], images)
        out, stats = networks.forward(self.parts, params, extra["stats"], (images * (1 - hole))[:, None], rng=r[1])
        return {"filled": out["decoder"][:, 0], "hole": hole}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        images, filled, hole = batch["views"][:, 0], encodings["filled"], encodings["hole"]
        error = lambda x: (hole * jnp.square(x - images)).sum() / hole.sum() / images.shape[-1]  # noqa: E731
        loss = error(filled)
        outside = ((1 - hole) * images).sum((1, 2), keepdims=True) / (1 - hole).sum((1, 2), keepdims=True)
        metrics = {"mean_fill_ratio": loss / error(outside)}
        if self.adversarial:
            whole = hole * filled + (1 - hole) * images
            stop, stats = jax.lax.stop_gradient, extra["stats"]
            judge = lambda weights, x: models.apply(self.discriminator, weights, stats["discriminator"], x, train=True)  # noqa: E731
            fooled, _ = judge(stop(params["discriminator"]), whole)
            both, own = judge(params["discriminator"], stop(jnp.concatenate([images, whole])))
            real, fake = jnp.split(both["embedding"], 2)
            generator = jax.nn.softplus(-fooled["embedding"]).mean()
            discriminator = jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()
            loss = (1 - self.adversarial) * loss + self.adversarial * generator + discriminator
            metrics |= {"discriminator_loss": discriminator}
            extra = {**extra, "stats": {**stats, "discriminator": own}}
        return loss, (extra, metrics)

    def pictures(self, params, extra, batch, rng):
        encodings, _ = self.encode(params, extra, batch, rng, {})
        images, hole = batch["views"][:, 0], encodings["hole"]
        filled = hole * encodings["filled"] + (1 - hole) * images
        return {"reconstructions": {"original": images, "masked": (1 - hole) * images, "reconstruction": filled}}
