"""Context prediction (Doersch et al. 2015, arXiv 1505.05192): where does the second patch lie around the first?"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method

AROUND = np.array([(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)])


@dataclasses.dataclass(frozen=True)
class RelativePatch(Method):
    """Two patches, apart by a gap and moved at random; cross-entropy of head(encoder(first), encoder(second)) over the eight places."""

    encoder: nn.Module = module("the encoder, run on patches; its features of whole images are kept", name="resnet")
    head: nn.Module = module("MLP on the features of both", name="mlp", hidden=512, out=8)
    patch: float = arg(0.3, "side of a patch over that of the image")
    gap: float = arg(0.05, "gap between patches over the image's side")
    jitter: float = arg(0.02, "how far a patch is moved at random, over the image's side")
    drop_colours: float = arg(
        1.0, "probability that two of a pair's three colours give way to noise: the guard against chromatic aberration"
    )

    def init(self, rng, batch):
        r = jax.random.split(rng, 3)
        pairs, _ = self.pairs(r[2], batch["views"][:, 0])
        params, stats = networks.init({"encoder": self.encoder}, r[0], pairs)
        out, _ = networks.forward({"encoder": self.encoder}, params, stats, pairs, train=False)
        head, head_stats = models.init(self.head, r[1], out["encoder"]["pooled"].reshape(len(pairs), -1), train=False)
        return params | {"head": head}, {"stats": stats | {"head": head_stats}}

    def pairs(self, rng, images):
        """Images (B, H, W, 3) -> (B, 2, p, p, 3), place of the second around the first int (B,)."""
        keys = jax.random.split(rng, 5)
        batch, size = images.shape[:2]
        patch, gap, jitter = (max(round(x * size), low) for x, low in ((self.patch, 4), (self.gap, 0), (self.jitter, 0)))
        step = patch + gap
        which = jax.random.randint(keys[0], (batch,), 0, 8)
        offset = jnp.asarray(AROUND)[which] * step  # (B, 2)
        low, high = jnp.maximum(-offset, 0), jnp.minimum(size - patch - offset, size - patch)
        first = low + jnp.floor(jax.random.uniform(keys[1], (batch, 2)) * (high - low + 1)).astype(jnp.int32)
        moved = first + offset + jax.random.randint(keys[2], (batch, 2), -jitter, jitter + 1)
        corners = jnp.clip(jnp.stack([first, moved], 1), 0, size - patch)  # (B, 2, 2)
        cut = lambda image, c: jax.lax.dynamic_slice(image, (c[0], c[1], 0), (patch, patch, 3))  # noqa: E731
        pairs = jax.vmap(lambda image, pair: jax.vmap(lambda c: cut(image, c))(pair))(images, corners)
        kept = jax.nn.one_hot(jax.random.randint(keys[3], (batch,), 0, 3), 3)[:, None, None, None]
        noise_key, drop_key = jax.random.split(keys[4])
        spread = 0.01 * pairs.std((2, 3), keepdims=True)
        dropped = kept * pairs + (1 - kept) * (pairs.mean((2, 3), keepdims=True) + spread * jax.random.normal(noise_key, pairs.shape))
        drop = jax.random.bernoulli(drop_key, self.drop_colours, (batch, 1, 1, 1, 1))
        return jnp.where(drop, dropped, pairs), which

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        pairs, which = self.pairs(r[0], batch["views"][:, 0])
        out, stats = networks.forward({"encoder": self.encoder}, params, extra["stats"], pairs, rng=r[1])
        h = out["encoder"]["pooled"].reshape(len(pairs), -1)  # (B, 2 D)
        logits, stats["head"] = models.apply(self.head, params["head"], extra["stats"]["head"], h, train=True)
        return {"logits": logits, "which": which}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        logits, which = encodings["logits"], encodings["which"]
        return losses.cross_entropy(logits, which), (extra, {"accuracy": (logits.argmax(-1) == which).mean()})
