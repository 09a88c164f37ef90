"""DeCLIP (Li et al. 2021, arXiv 2110.05208): CLIP with all the supervision there is in a pair: itself, other views, neighbours."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models import towers


@dataclasses.dataclass(frozen=True)
class DeCLIP(Method):
    """(1 - a - b - c) CLIP + a (SimSiam of two views + masked words) + b multi-view CLIP + c CLIP to the text's nearest neighbour
    (equation 7).

    "views" has one view for CLIP, "augmented" two for SimSiam and for the multi-view loss, whose second text is the one with masked words.
    Neighbours are looked for in a queue of earlier texts."""

    encoder: nn.Module = module("the image tower", name="vit", out=512)
    text: nn.Module = module("the text tower; the last id is the mask token", name="text", pool="gap", out=512)
    projector: nn.Module = module("SimSiam's projector", name="mlp", hidden=1024, out=1024, layers=3, last_norm=True)
    predictor: nn.Module = module("SimSiam's predictor", name="mlp", hidden=512, out=1024)
    self_weight: float = arg(0.2, "a")
    view_weight: float = arg(0.2, "b")
    neighbour_weight: float = arg(0.2, "c")
    word_ratio: float = arg(0.15, "share of the words that is masked")
    queue: int = arg(65536, "texts in which neighbours are looked for")
    init_temperature: float = arg(0.07, "temperature at the start; the logarithm of its inverse, the logit scale, is learned")
    max_scale: float = arg(100.0, "the logit scale is held at or below it")

    @property
    def head(self):
        return models.module_class("linear_head")(out=self.text.vocab_size)

    @property
    def siamese(self):
        return {name: getattr(self, name) for name in ("encoder", "projector", "predictor")}

    def init(self, rng, batch):
        r = jax.random.split(rng, 4)
        params, stats = towers.init(self.encoder, self.text, r[0], batch["views"][:, 0], batch["text"])
        own, own_stats = networks.init(self.siamese, r[1], batch["augmented"])
        params |= {name: own[name] for name in ("projector", "predictor")}
        stats |= {name: own_stats[name] for name in ("projector", "predictor")}
        params["words"], _ = models.init(self.head, r[2], jnp.zeros((1, 1, self.text.width)), train=False)
        width = jax.eval_shape(lambda: towers.encode(self.encoder, self.text, params, stats, batch, rng)[0])["text"].shape[-1]
        return params | towers.start_scale(self.init_temperature), {"stats": stats, **networks.queue(r[3], self.queue, width)}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng, 4)
        pairs, stats = towers.encode(self.encoder, self.text, params, extra["stats"], batch, r[0])
        out, stats = networks.forward(self.siamese, params, {**extra["stats"], **stats}, batch["augmented"], rng=r[1])
        read, mask = networks.masked_words(r[2], batch["text"], self.word_ratio, self.text.vocab_size)
        t, _ = models.apply(self.text, params["text"], stats["text"], read, train=True, rng=r[3])
        logits, _ = models.apply(self.head, params["words"], {}, t["tokens"], train=True)
        views = losses.normalise(out["encoder"].get("embedding", out["encoder"]["pooled"]).astype(jnp.float32))  # (B, 2, E)
        siamese = {"z": out["projector"], "p": out["predictor"]}
        return {**pairs, **siamese, "views": views, "masked": towers.unit(t), "logits": logits, "mask": mask}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        scale, x, y, z, p = (towers.scale(params, self.max_scale), *(encodings[k] for k in ("image", "text", "z", "p")))
        clip = losses.clip_softmax(x, y, scale)
        siamese = (losses.negative_cosine(p[:, 0], z[:, 1]) + losses.negative_cosine(p[:, 1], z[:, 0])) / 2
        words = losses.masked_tokens(encodings["logits"], batch["text"], encodings["mask"])
        others = [(encodings["views"][:, v], t) for v in (0, 1) for t in (y, encodings["masked"])]
        views = sum(losses.clip_softmax(a, b, scale) for a, b in others) / len(others)
        near = losses.nearest_neighbours(jax.lax.stop_gradient(y), extra["queue"])
        neighbour = losses.clip_softmax(x, near, scale)
        a, b, c = self.self_weight, self.view_weight, self.neighbour_weight
        loss = (1 - a - b - c) * clip + a * (siamese + words) + b * views + c * neighbour
        stale = networks.staleness(extra, jax.lax.stop_gradient(y))
        metrics = {"clip_loss": clip, "siamese_loss": siamese, "words_loss": words, "views_loss": views, "neighbour_loss": neighbour}
        return loss, (networks.enqueue(extra, jax.lax.stop_gradient(y)), {**metrics, **stale, "logit_scale": scale})

    def embed(self, params, extra, batch):
        return towers.embed(self.encoder, self.text, params, extra["stats"], batch)
