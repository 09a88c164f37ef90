"""data2vec (Baevski et al. 2022, arXiv 2202.03555): predict the teacher's own layers, of the whole image, at the masked patches."""

import dataclasses

import flax.linen as nn
import jax

from ssljax import losses, models, networks, schedules
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class Data2Vec(Method):
    """target = mean of the normalised top layers of teacher(image); prediction = head(student(masked image)); smooth L1 at the masked."""

    encoder: nn.Module = module("the encoder, which sees mask tokens", name="vit", mask_token=True, pool="gap")
    mask_ratio: float = arg(0.6, "share of the patches that is masked")
    least: int = arg(16, "patches of the smallest masked block")
    top_layers: int = arg(6, "so many of the teacher's last blocks are averaged")
    target: str = arg("block", "of a block: its end, or mlp, what its MLP gives before it is added (section 3.3)", ("block", "mlp"))
    target_norms: tuple = arg(("layer",), "what a block's targets go through before their mean: layer, instance, batch, in this order")
    mean_norms: tuple = arg((), "what their mean goes through")
    beta: float = arg(2.0, "where smooth L1 turns from square to line")
    ema: float = arg(0.9998, "teacher momentum at the start")
    ema_final: float = arg(0.9998, "teacher momentum from ema_steps on")
    ema_steps: int = arg(0, "steps in which it rises in a line; 0: the whole run")

    def schedules(self, run):
        steps = self.ema_steps or run.steps
        return {"ema": schedules.linear(self.ema, self.ema_final, min(steps, run.steps))}

    @property
    def head(self):
        return models.module_class("linear_head")(out=self.encoder.width)  # what regresses the targets

    @property
    def parts(self):
        return {"encoder": self.encoder, "head": self.head}

    def init(self, rng, batch):
        params, stats = networks.init(self.parts, rng, batch["views"])
        return params, {"stats": stats, **networks.teacher(params, stats, ["encoder"])}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng, 3)
        images, size = batch["views"][:, 0], self.encoder.patch_size
        count = (images.shape[1] // size) * (images.shape[2] // size)
        mask = networks.masks("block", r[0], images, size, masked=round(self.mask_ratio * count), least=self.least)["mask"]  # (B, N)
        teacher, _ = models.apply(self.encoder, extra["teacher"]["encoder"], {}, images, train=False, layers=self.target)
        h, _ = models.apply(self.encoder, params["encoder"], {}, images, train=True, rng=r[1], mask=mask > 0)
        prediction, _ = models.apply(self.head, params["head"], {}, h["patches"], train=True)  # (B, N, D)
        layers = teacher["layers"][-self.top_layers :, :, -count:]  # (K, B, N, D)
        target = losses.data2vec_target(layers, norms=self.target_norms, norms_after=self.mean_norms)
        return {"prediction": prediction, "target": target, "mask": mask}, extra

    def objective(self, params, extra, encodings, batch, s):
        target = encodings["target"]
        loss = losses.data2vec(encodings["prediction"], target, encodings["mask"], beta=self.beta)
        return loss, (extra, {"target_std": target.std(axis=(0, 1)).mean()})  # towards 0: the targets have collapsed

    def after_step(self, params, extra, s):
        return networks.follow(extra, params, s["ema"])
