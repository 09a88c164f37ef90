"""STAIR (Chen et al. 2023, arXiv 2301.13081): pictures and texts as sparse weights of words, each dimension a word of the vocabulary."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models import towers


@dataclasses.dataclass(frozen=True)
class STAIR(Method):
    """x = max over tokens of log(1 + relu(head(tokens))), (B, vocabulary), of either tower (equation 3); CLIP over these, normalised, +
    flops_weight * sum_v mean_i(x_iv)^2 of both (equation 5), which drives words nobody needs to zero."""

    encoder: nn.Module = module("the image tower", name="vit")
    text: nn.Module = module("the text tower; padding, id 0, says nothing", name="text", pool="gap")
    vocabulary: int = arg(32000, "words of the embedding")
    flops_weight: float = arg(1e-3, "weight of the FLOPs regulariser, of each tower")
    init_temperature: float = arg(0.07, "temperature at the start; the logarithm of its inverse, the logit scale, is learned")
    max_scale: float = arg(100.0, "the logit scale is held at or below it")

    def init(self, rng, batch):
        r = jax.random.split(rng, 3)
        params, stats, widths = towers.init_of_tokens(self.encoder, self.text, r[0], batch["views"][:, 0], batch["text"])
        for key, (tower, width) in zip(r[1:], widths.items(), strict=True):
            kernel = nn.initializers.xavier_uniform()(key, (width, self.vocabulary))
            params[f"{tower}_head"] = {"kernel": kernel, "bias": jnp.zeros(self.vocabulary)}
        return params | towers.start_scale(self.init_temperature), {"stats": stats}

    def _sparse(self, head, tokens, valid=None):
        """Tokens (B, N, D) -> (B, vocabulary), at least 0."""
        x = jnp.log1p(nn.relu(tokens.astype(jnp.float32) @ head["kernel"] + head["bias"]))
        return (x if valid is None else x * valid[..., None]).max(1)

    def _both(self, params, stats, batch, train, rng):
        """-> {"image": .., "text": ..} of what the batch has, statistics, the image tower's outputs."""
        r, out, h = [None] * 2 if rng is None else jax.random.split(rng), {}, None
        if "image" in batch:
            h, own = models.apply(self.encoder, params["encoder"], stats["encoder"], batch["image"], train=train, rng=r[0])
            out["image"], stats = self._sparse(params["image_head"], h["patches"]), {**stats, "encoder": own}
        if "text" in batch:
            valid = batch["text"] != 0
            t, other = models.apply(self.text, params["text"], stats["text"], batch["text"], train=train, rng=r[1], valid=valid)
            out["text"], stats = self._sparse(params["text_head"], t["tokens"], valid), {**stats, "text": other}
        return out, stats, h

    def encode(self, params, extra, batch, rng, s):
        pairs = {"image": batch["views"][:, 0], "text": batch["text"]}
        out, stats, _ = self._both(params, extra["stats"], pairs, True, rng)
        return out, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        scale, (x, y) = towers.scale(params, self.max_scale), (encodings["image"], encodings["text"])
        clip = losses.clip_softmax(losses.normalise(x), losses.normalise(y), scale)
        flops = sum(jnp.square(z.mean(0)).sum() for z in (x, y))
        used = {f"{name}_words": (z > 1e-3).sum(-1).mean() for name, z in (("image", x), ("text", y))}
        return clip + self.flops_weight * flops, (extra, {"clip_loss": clip, "flops": flops, **used, "logit_scale": scale})

    def embed(self, params, extra, batch):
        out, _, h = self._both(params, extra["stats"], batch, False, None)
        found = {f"{name}_embedding": losses.normalise(x) for name, x in out.items()}
        return found | ({} if h is None else {"features": h["pooled"]})
