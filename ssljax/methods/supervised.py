"""Supervised classification: the cross-entropy of a linear layer on an encoder; also what a converted encoder is evaluated through."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.errors import UserError
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class Supervised(Method):
    """loss = cross_entropy(encoder(view)["embedding"], label); encoder.out is the number of classes. Features are the pooled vector.

    SimCLR v2 (Chen et al. 2020, arXiv 2006.10029, section 2) fine-tunes from a middle layer of its projector: with `hidden` that layer,
    named and shaped as in the projector, stands between the encoder and the `classes` (config.init.drop="projector/fc2")."""

    encoder: nn.Module = module("the encoder; its field out is the number of classes, unless there is a hidden layer", name="vit")
    label_smoothing: float = arg(0.0, "share of a label that is spread over all classes")
    hidden: int = arg(0, "width of a projector's first layer that is kept between encoder and classes; 0: none")
    classes: int = arg(0, "number of classes, with a hidden layer")

    @property
    def parts(self):
        head = {"projector": models.module_class("mlp")(hidden=self.hidden, out=self.classes)} if self.hidden else {}
        return {"encoder": self.encoder, **head}

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"][:, :1], rng=rng)
        logits = out["projector"] if self.hidden else out["encoder"].get("embedding")
        if logits is None or "label" not in batch:
            raise UserError("method supervised: config.method.encoder.out should be the number of classes, and the data have labels")
        return {"logits": logits[:, 0].astype(jnp.float32)}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        logits, labels = encodings["logits"], batch["label"]
        loss = losses.cross_entropy(logits, labels, smoothing=self.label_smoothing)
        return loss, (extra, {"accuracy": (logits.argmax(-1) == labels).mean()})

    def embed(self, params, extra, batch):
        out, _ = networks.forward(self.parts, params, extra["stats"], batch["image"][:, None], train=False)
        h = {name: value[:, 0] for name, value in out["encoder"].items() if name in ("pooled", "embedding")}
        logits = out["projector"][:, 0] if self.hidden else h.get("embedding")
        return {"features": h["pooled"]} | ({} if logits is None else {"logits": logits})
