"""Jigsaw puzzles (Noroozi and Favaro 2016, arXiv 1603.09246): nine tiles in one of many orders; which order is it?"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@functools.cache
def permutations(count, tiles, seed=0):
    """int32 (count, tiles): permutations far apart, each the one of largest least Hamming distance to those before it among 2,000 drawn
    (Algorithm 1, which looks at all 362,880)."""
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(tiles)]
    while len(chosen) < count:
        drawn = np.argsort(rng.random((2000, tiles)), axis=1)
        apart = np.min([(drawn != one).sum(1) for one in chosen], axis=0)
        chosen.append(drawn[apart.argmax()])
    return np.stack(chosen).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Jigsaw(Method):
    """Tiles cut apart with gaps, normalised each by itself, one encoder for all; cross-entropy over the permutations (section 4)."""

    encoder: nn.Module = module("the encoder, run on tiles; its features of whole images are kept", name="resnet")
    head: nn.Module = module("MLP on the features of all tiles", name="mlp", hidden=1024, out=1000)
    side: int = arg(3, "tiles a side")
    gap: float = arg(0.25, "share of a tile's side that is left out at random, so that edges give nothing away")
    grey: float = arg(0.3, "probability that a puzzle loses its colours: the lens's, at the edges of tiles, would tell (section 4.3)")

    def init(self, rng, batch):
        r = jax.random.split(rng, 3)
        tiles, _ = self.puzzle(r[2], batch["views"][:, 0])
        params, stats = networks.init({"encoder": self.encoder}, r[0], tiles)
        out, _ = networks.forward({"encoder": self.encoder}, params, stats, tiles, train=False)
        head, head_stats = models.init(self.head, r[1], out["encoder"]["pooled"].reshape(len(tiles), -1), train=False)
        return params | {"head": head}, {"stats": stats | {"head": head_stats}}

    def puzzle(self, rng, images):
        """Images (B, H, W, 3) -> shuffled tiles (B, side^2, h, h, 3), which permutation int (B,)."""
        keys = jax.random.split(rng, 3)
        batch, size, cell = images.shape[0], images.shape[1], images.shape[1] // self.side
        inner = max(round(cell * (1 - self.gap)), 1)
        at = jax.random.randint(keys[0], (batch, self.side**2, 2), 0, cell - inner + 1)
        corners = np.stack(np.meshgrid(np.arange(self.side), np.arange(self.side), indexing="ij"), -1).reshape(-1, 2) * cell
        cut = lambda image, corner: jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (inner, inner, 3))  # noqa: E731
        tiles = jax.vmap(lambda image, corner: jax.vmap(lambda c: cut(image, c))(corner))(images, jnp.minimum(at + corners, size - inner))
        plain = jnp.broadcast_to(tiles.mean(-1, keepdims=True), tiles.shape)
        tiles = jnp.where(jax.random.bernoulli(keys[1], self.grey, (batch, 1, 1, 1, 1)), plain, tiles)
        tiles = (tiles - tiles.mean((2, 3, 4), keepdims=True)) / (tiles.std((2, 3, 4), keepdims=True) + 1e-3)
        which = jax.random.randint(keys[2], (batch,), 0, self.head.out)
        order = jnp.asarray(permutations(self.head.out, self.side**2))[which]
        return jnp.take_along_axis(tiles, order[:, :, None, None, None], axis=1), which

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        tiles, which = self.puzzle(r[0], batch["views"][:, 0])
        out, stats = networks.forward({"encoder": self.encoder}, params, extra["stats"], tiles, rng=r[1])
        h = out["encoder"]["pooled"].reshape(len(tiles), -1)  # (B, tiles * D)
        logits, stats["head"] = models.apply(self.head, params["head"], extra["stats"]["head"], h, train=True)
        return {"logits": logits, "which": which}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        logits, which = encodings["logits"], encodings["which"]
        return losses.cross_entropy(logits, which), (extra, {"accuracy": (logits.argmax(-1) == which).mean()})
