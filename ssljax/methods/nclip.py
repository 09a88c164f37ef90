"""nCLIP and xCLIP (Zhou et al. 2022, arXiv 2210.09304): picture and text name the same cluster of many, without negatives, or with."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models import towers


@dataclasses.dataclass(frozen=True)
class NCLIP(Method):
    """u = softmax(head(image)), v = softmax(head(text)); the mean of CE(u, v) and CE(v, u), each with both sides learned, + sharp_weight *
    their entropies - even_weight * the entropy of their means over the batch (equations 3 to 6). xCLIP: + clip_weight * CLIP."""

    encoder: nn.Module = module("the image tower", name="vit", out=512)
    text: nn.Module = module("the text tower", name="text", causal=True, pool="eot", out=512)
    projector: nn.Module = module("head on a picture's or a text's features, one each: clusters", name="mlp", hidden=4096, out=32768)
    temperature: float = arg(0.1, "of the softmax over clusters")
    sharp_weight: float = arg(0.5, "weight of the entropy of each")
    even_weight: float = arg(1.0, "weight of the entropy of the mean")
    clip_weight: float = arg(0.0, "weight of CLIP's loss; nCLIP: 0, xCLIP: 1")
    init_temperature: float = arg(0.07, "temperature at the start; the logarithm of its inverse, the logit scale, is learned")
    max_scale: float = arg(100.0, "the logit scale is held at or below it")

    def init(self, rng, batch):
        r = jax.random.split(rng, 3)
        params, stats = towers.init(self.encoder, self.text, r[0], batch["views"][:, 0], batch["text"])
        width = jax.eval_shape(lambda: towers.encode(self.encoder, self.text, params, stats, batch, rng)[0])["image"].shape[-1]
        for name, key in (("image_head", r[1]), ("text_head", r[2])):
            params[name], stats[name] = models.init(self.projector, key, jnp.zeros((2, width)), train=False)
        return params | towers.start_scale(self.init_temperature), {"stats": stats}

    def encode(self, params, extra, batch, rng, s):
        out, stats = towers.encode(self.encoder, self.text, params, extra["stats"], batch, rng)
        stats, logits = {**extra["stats"], **stats}, {}
        for name in ("image", "text"):
            head = f"{name}_head"
            logits[f"{name}_logits"], stats[head] = models.apply(self.projector, params[head], stats[head], out[name], train=True)
        return {**out, **logits}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        u, v = (jax.nn.log_softmax(encodings[f"{name}_logits"] / self.temperature) for name in ("image", "text"))
        cross = lambda a, b: -(jnp.exp(a) * b).sum(-1).mean()  # noqa: E731
        own, even = (cross(u, u) + cross(v, v)) / 2, (losses.entropy_of_mean(u) + losses.entropy_of_mean(v)) / 2
        loss = (cross(u, v) + cross(v, u)) / 2 + self.sharp_weight * own - self.even_weight * even
        metrics = {"teacher_entropy": own, "prototype_entropy": even}
        if self.clip_weight:
            scale = towers.scale(params, self.max_scale)
            clip = losses.clip_softmax(encodings["image"], encodings["text"], scale)
            loss, metrics = loss + self.clip_weight * clip, {**metrics, "clip_loss": clip, "logit_scale": scale}
        return loss, (extra, metrics)

    def embed(self, params, extra, batch):
        """With clip_weight the towers' own vectors are compared; without, the clusters' logits."""
        out = towers.embed(self.encoder, self.text, params, extra["stats"], batch)
        for name in ("image", "text") if not self.clip_weight else ():
            key, head = f"{name}_embedding", f"{name}_head"
            if key in out:
                logits, _ = models.apply(self.projector, params[head], extra["stats"][head], out[key], train=False)
                out[key] = losses.normalise(jnp.sqrt(jax.nn.softmax(logits / self.temperature)))
        return out
