"""data2vec on text (Baevski et al. 2022, arXiv 2202.03555, section 3): predict the teacher's layers, of the whole text, where masked."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks, schedules
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class Data2VecText(Method):
    """target = mean of the normalised top layers of teacher(text); prediction = head(student(masked text)); smooth L1 at the masked.

    Masks are BERT's. Padding is id 0 and is not looked at; the last id is the mask token."""

    text: nn.Module = module("the encoder", name="text", norm="post", first_norm=True, last_norm="none", pool="first")
    mask_ratio: float = arg(0.15, "share of the tokens that is predicted")
    top_layers: int = arg(10, "so many of the teacher's last blocks are averaged")
    target: str = arg("mlp", "of a block: its end, or mlp, what its MLP gives before it is added (section 3.3)", ("block", "mlp"))
    target_norms: tuple = arg(("layer",), "what a block's targets go through before their mean: layer, instance, batch, in this order")
    beta: float = arg(4.0, "where smooth L1 turns from square to line")
    ema: float = arg(0.999, "teacher momentum at the start")
    ema_final: float = arg(0.9999, "teacher momentum from ema_steps on")
    ema_steps: int = arg(0, "steps in which it rises in a line; 0: the whole run")

    @property
    def encoder(self):
        return self.text

    def schedules(self, run):
        return {"ema": schedules.linear(self.ema, self.ema_final, min(self.ema_steps or run.steps, run.steps))}

    @property
    def head(self):
        return models.module_class("linear_head")(out=self.text.width)

    def init(self, rng, batch):
        r = jax.random.split(rng)
        text, _ = models.init(self.text, r[0], batch["text"], train=False)
        head, _ = models.init(self.head, r[1], jnp.zeros((1, 1, self.text.width)), train=False)
        params, stats = {"text": text, "head": head}, {"text": {}}
        return params, {"stats": stats, **networks.teacher(params, stats, ["text"])}

    def encode(self, params, extra, batch, rng, s):
        r, ids = jax.random.split(rng), batch["text"]
        read, mask = networks.masked_words(r[0], ids, self.mask_ratio, self.text.vocab_size)
        teacher, _ = models.apply(self.text, extra["teacher"]["text"], {}, ids, train=False, valid=ids != 0, layers=self.target)
        h, _ = models.apply(self.text, params["text"], {}, read, train=True, rng=r[1], valid=ids != 0)
        prediction, _ = models.apply(self.head, params["head"], {}, h["tokens"], train=True)  # (B, T, D)
        target = losses.data2vec_target(teacher["layers"][-self.top_layers :], norms=self.target_norms)
        return {"prediction": prediction, "target": target, "mask": mask}, extra

    def objective(self, params, extra, encodings, batch, s):
        target = encodings["target"]
        loss = losses.data2vec(encodings["prediction"], target, encodings["mask"], beta=self.beta)
        return loss, (extra, {"target_std": target.std(axis=(0, 1)).mean()})  # towards 0: the targets have collapsed

    def after_step(self, params, extra, s):
        return networks.follow(extra, params, s["ema"])

    def embed(self, params, extra, batch):
        return networks.text_features(self.text, params, batch["text"])
