"""VQ-KD (Peng et al. 2022, arXiv 2208.06366, section 2.2): words of patches that rebuild a teacher's features; BEiT v2's first stage."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class VQKD(Method):
    """z = normalise(project(encoder(image))); word = the nearest code; 1 - cos(decoder(code), teacher) + |z - sg(code)|^2 (equations 2, 3).

    The gradient passes the code as if it were z. Codes are no parameters: each moves to the mean of its patches (normalised, momentum)."""

    encoder: nn.Module = module("what names the patches", name="vit", class_token=False, pool="gap")
    tower: str = arg("", "workdir of the run whose features are rebuilt (CLIP, DINO); empty: the patches' own pixels")
    codes: int = arg(8192, "codes in the codebook")
    width: int = arg(32, "width of a code")
    decoder_depth: int = arg(3, "blocks of the decoder")
    decoder_width: int = arg(768, "its width")
    decoder_heads: int = arg(12, "its attention heads")
    commitment: float = arg(1.0, "weight of |z - sg(code)|^2")
    momentum: float = arg(0.99, "of the codes")
    revive: float = arg(0.0, "a code used less than this of an even share restarts at a patch (SoundStream, Zeghidour et al. 2021)")

    def weights(self):
        return networks.tower_weights(self.tower)

    def schedules(self, run):
        return {"first": lambda step: (step == 0).astype(jnp.float32)}

    @property
    def decoder(self):
        return Transformer(depth=self.decoder_depth, heads=self.decoder_heads, mlp_dim=4 * self.decoder_width)

    def init(self, rng, batch):
        r = jax.random.split(rng, 6)
        images = batch["views"][:, 0]
        encoder, stats = models.init(self.encoder, r[0], images, train=False)
        extra = {"stats": {"encoder": stats}, "frozen": networks.blank(self.weights())}
        extra |= {"codebook": networks.directions(r[1], self.codes, self.width), "use": jnp.ones(self.codes)}  # of an even share
        out = jax.eval_shape(lambda: networks.tower_patches(self.tower, extra, images, self.encoder.patch_size)).shape[-1]
        linear = lambda key, a, b: nn.initializers.xavier_uniform()(key, (a, b))  # noqa: E731
        decoder, _ = models.init(self.decoder, r[2], jnp.zeros((1, 1, self.decoder_width)), train=False)
        params = {"encoder": encoder, "decoder": decoder, "project": linear(r[3], self.encoder.width, self.width)}
        count = (images.shape[1] // self.encoder.patch_size) * (images.shape[2] // self.encoder.patch_size)
        params["position"] = 0.02 * jax.random.normal(jax.random.fold_in(r[2], 1), (1, count, self.decoder_width))
        params |= {"expand": linear(r[4], self.width, self.decoder_width), "rebuild": linear(r[5], self.decoder_width, out)}
        return params, extra

    def _z(self, params, extra, images, train, rng=None):
        h, stats = models.apply(self.encoder, params["encoder"], extra["stats"]["encoder"], images, train=train, rng=rng)
        return losses.normalise(jnp.tanh(h["patches"].astype(jnp.float32) @ params["project"])), stats  # (B, N, D)

    def tokens(self, params, extra, images):
        """Normalised images (B, H, W, 3) -> int32 (B, N), the nearest code of every patch."""
        z, _ = self._z(params, extra, images, False)
        return losses.cosines(z, extra["codebook"]).argmax(-1).astype(jnp.int32)

    def _codes(self, z):
        """Where the codes start, as the authors' do: k-means of the first batch's patches z (B N, D)."""
        return losses.spherical_kmeans(z, self._apart(z), iterations=10, split=1 / 1024)[0]

    def _apart(self, z):
        """As many of the patches as there are codes, evenly from all of the batch."""
        return z[jnp.linspace(0, len(z) - 1, self.codes).astype(jnp.int32)]

    def encode(self, params, extra, batch, rng, s):
        images = batch["views"][:, 0]
        z, stats = self._z(params, extra, images, True, rng)
        target = networks.tower_patches(self.tower, extra, images, self.encoder.patch_size)
        return {"z": z, "target": target}, {**extra, "stats": {"encoder": stats}}

    def objective(self, params, extra, encodings, batch, s):
        z, target = encodings["z"], encodings["target"]
        flat = jax.lax.stop_gradient(z.reshape(-1, self.width))
        codebook = jax.lax.cond(s["first"] > 0, lambda: self._codes(flat), lambda: extra["codebook"])
        words = losses.cosines(jax.lax.stop_gradient(z), codebook).argmax(-1)  # (B, N)
        code = codebook[words]
        x = (z + jax.lax.stop_gradient(code - z)) @ params["expand"] + params["position"]
        x, _ = models.apply(self.decoder, params["decoder"], {}, x, train=True)
        cosine = losses.rowwise(losses.normalise(x.astype(jnp.float32) @ params["rebuild"]), losses.normalise(target)).mean()
        loss = 1 - cosine + self.commitment * jnp.square(z - code).sum(-1).mean()
        counts = jnp.zeros(self.codes).at[words.reshape(-1)].add(1.0)
        sums = jnp.zeros_like(codebook).at[words.reshape(-1)].add(flat)
        moved = losses.normalise(self.momentum * codebook + (1 - self.momentum) * losses.normalise(sums))
        codebook = jnp.where(counts[:, None] > 0, moved, codebook)
        use = self.momentum * extra["use"] + (1 - self.momentum) * counts * self.codes / len(flat)
        dead = use < self.revive
        extra = {**extra, "codebook": jnp.where(dead[:, None], self._apart(flat), codebook), "use": jnp.where(dead, 1.0, use)}
        return loss, (extra, {"target_cosine": cosine, "codebook_use": (counts > 0).mean()})
