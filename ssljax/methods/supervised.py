"""Supervised classification: the cross-entropy of a linear layer on an encoder; also what a converted encoder is evaluated through."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.augment import mixing
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
    mixup: float = arg(0.0, "alpha of mixup, which takes turns with CutMix where both are on (Touvron et al. 2021, DeiT: 0.8); 0: off")
    cutmix: float = arg(0.0, "alpha of CutMix (DeiT: 1.0); 0: off")
    hidden: int = arg(0, "width of a projector's first layer that is kept between encoder and classes; 0: none")
    classes: int = arg(0, "number of classes, with a hidden layer")

    @property
    def parts(self):
        head = {"projector": models.module_class("mlp")(hidden=self.hidden, out=self.classes)} if self.hidden else {}
        return {"encoder": self.encoder, **head}

    def encode(self, params, extra, batch, rng, s):
        r, images, targets = jax.random.split(rng), batch["views"][:, :1], None
        if (self.mixup or self.cutmix) and "label" in batch:
            labels = jax.nn.one_hot(batch["label"], self.classes or self.encoder.out)
            images, targets = mixing.mixed(r[1], images, labels, mixup_alpha=self.mixup, cutmix_alpha=self.cutmix)
        out, stats = networks.forward(self.parts, params, extra["stats"], images, rng=r[0])
        logits = out["projector"] if self.hidden else out["encoder"].get("embedding")
        if logits is None or "label" not in batch:
            raise UserError("method supervised: config.method.encoder.out should be the number of classes, and the data have labels")
        mixed = {} if targets is None else {"targets": targets}
        return {"logits": logits[:, 0].astype(jnp.float32), **mixed}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        logits, labels = encodings["logits"], batch["label"]
        if "targets" in encodings:
            loss = losses.soft_cross_entropy(logits, encodings["targets"], smoothing=self.label_smoothing)
        else:
            loss = losses.cross_entropy(logits, labels, smoothing=self.label_smoothing)
        return loss, (extra, {"accuracy": (logits.argmax(-1) == labels).mean()})

    def embed(self, params, extra, batch):
        out, _ = networks.forward(self.parts, params, extra["stats"], batch["image"][:, None], train=False)
        h = {name: value[:, 0] for name, value in out["encoder"].items() if name in ("pooled", "embedding")}
        logits = out["projector"][:, 0] if self.hidden else h.get("embedding")
        return {"features": h["pooled"]} | ({} if logits is None else {"logits": logits})
