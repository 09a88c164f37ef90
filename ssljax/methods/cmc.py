"""CMC (Tian et al. 2020, arXiv 1906.05849): lightness and colour of a picture, each with an encoder of its own, agree."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, networks
from ssljax.augment import lab
from ssljax.errors import UserError
from ssljax.fields import arg, module
from ssljax.method import Method

# What an encoder may see of Lab pictures, scaled to about [-1, 1].
SENSES = {"lightness": slice(0, 1), "colour": slice(1, 3), "green_red": slice(1, 2), "blue_yellow": slice(2, 3), "lab": slice(0, 3)}


@dataclasses.dataclass(frozen=True)
class CMC(Method):
    """z_s = projector_s(encoder_s(sense s of the view)); the sum over pairs of senses of InfoNCE in both directions (the full graph,
    equation 6). Negatives are the batch's, where the paper keeps a memory bank. Features are those of all encoders, one after the other."""

    encoder: nn.Module = module("each sense's encoder", name="resnet")
    projector: nn.Module = module("each sense's head; the paper's is linear", name="mlp", out=128, layers=1)
    senses: tuple = arg(("lightness", "colour"), "two or more of lightness, colour, green_red, blue_yellow, lab")
    temperature: float = arg(0.07, "temperature of the softmax over similarities")
    mean: tuple = arg((0.485, 0.456, 0.406), "config.data.mean, to undo it")
    std: tuple = arg((0.229, 0.224, 0.225), "config.data.std, to undo it")

    def __post_init__(self):
        if len(self.senses) < 2 or set(self.senses) - set(SENSES):
            raise UserError(f"config.method.senses={self.senses}: expected two or more of {', '.join(SENSES)}")

    def sense(self, images):
        """Normalised images (..., H, W, 3) -> {sense: (..., H, W, C)}."""
        values = lab.rgb_to_lab(images * jnp.asarray(self.std) + jnp.asarray(self.mean))
        values = jnp.stack([values[..., 0] / 50 - 1, values[..., 1] / 80, values[..., 2] / 80], axis=-1)
        return {name: values[..., SENSES[name]] for name in self.senses}

    def init(self, rng, batch):
        keys = jax.random.split(rng, len(self.senses))
        made = {name: networks.init(self.parts, key, x) for key, (name, x) in zip(keys, self.sense(batch["views"]).items(), strict=True)}
        params, stats = ({name: pair[i] for name, pair in made.items()} for i in (0, 1))
        return params, {"stats": stats}

    def encode(self, params, extra, batch, rng, s):
        z, stats = {}, {}
        for i, (name, x) in enumerate(self.sense(batch["views"][:, :1]).items()):
            out, stats[name] = networks.forward(self.parts, params[name], extra["stats"][name], x, rng=jax.random.fold_in(rng, i))
            z[name] = losses.normalise(out["projector"][:, 0])  # (B, D)
        return z, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        pairs = list(itertools.combinations(encodings.values(), 2))
        loss = sum(2 * losses.clip_softmax(x, y, 1 / self.temperature) for x, y in pairs)  # half the sum of both directions, doubled
        return loss, (extra, {"positive_similarity": sum(losses.rowwise(x, y).mean() for x, y in pairs) / len(pairs)})

    def embed(self, params, extra, batch):
        seen = self.sense(batch["image"]).items()
        each = [networks.features(self.encoder, params[name], extra["stats"][name], x)["features"] for name, x in seen]
        return {"features": jnp.concatenate(each, axis=-1)}
