"""MOFI (Wu et al. 2023, arXiv 2306.07952): pictures of entities, told apart by name (classification) and by text (contrast)."""

import dataclasses

import flax.linen as nn
import jax

from ssljax import losses
from ssljax.fields import arg, module
from ssljax.method import Method
from ssljax.models import towers


@dataclasses.dataclass(frozen=True)
class MOFI(Method):
    """CLIP + entity_weight * cross-entropy of entity_scale * cos(image, entity) over all entities, the batch's "label" (section 3.3).

    The paper samples the softmax over two million entities; here it is whole."""

    encoder: nn.Module = module("the image tower", name="vit", out=512)
    text: nn.Module = module("the text tower", name="text", causal=True, pool="eot", out=512)
    entities: int = arg(1000, "number of entities, the label's classes")
    entity_weight: float = arg(1.0, "weight of the classification")
    entity_scale: float = arg(32.0, "scale of the cosines to entities")
    init_temperature: float = arg(0.07, "temperature at the start; the logarithm of its inverse, the logit scale, is learned")
    max_scale: float = arg(100.0, "the logit scale is held at or below it")

    def init(self, rng, batch):
        r = jax.random.split(rng)
        params, stats = towers.init(self.encoder, self.text, r[0], batch["views"][:, 0], batch["text"])
        width = jax.eval_shape(lambda: towers.encode(self.encoder, self.text, params, stats, batch, rng)[0])["image"].shape[-1]
        params["entities"] = jax.random.normal(r[1], (self.entities, width)) * width**-0.5
        return params | towers.start_scale(self.init_temperature), {"stats": stats}

    def encode(self, params, extra, batch, rng, s):
        encodings, stats = towers.encode(self.encoder, self.text, params, extra["stats"], batch, rng)
        return encodings, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        scale, x = towers.scale(params, self.max_scale), encodings["image"]
        clip = losses.clip_softmax(x, encodings["text"], scale)
        logits = self.entity_scale * losses.cosines(x, params["entities"])
        entity = losses.cross_entropy(logits, batch["label"])
        metrics = {"clip_loss": clip, "entity_loss": entity, "accuracy": (logits.argmax(-1) == batch["label"]).mean()}
        return clip + self.entity_weight * entity, (extra, {**metrics, "logit_scale": scale})

    def embed(self, params, extra, batch):
        return towers.embed(self.encoder, self.text, params, extra["stats"], batch)
