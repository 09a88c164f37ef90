"""MoCo v3 (Chen et al. 2021, arXiv 2104.02057): a teacher's keys as in MoCo, the batch's negatives as in SimCLR, and a predictor."""

import dataclasses

import flax.linen as nn
import jax

from ssljax import losses, networks, schedules
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class MoCoV3(Method):
    """q = predictor(projector(encoder(views))); k = teacher(views); loss = ctr(q0, k1) + ctr(q1, k0) (Algorithm 1).

    A ViT's patch projection stays random (section 4.2) by a rule of the config: groups=((r"^encoder/patch_embed/", dict(lr=0.0)),).
    """

    encoder: nn.Module = module("the encoder whose features are kept", name="vit")
    projector: nn.Module = module("3-layer MLP", name="mlp", hidden=4096, out=256, layers=3, last_norm=True, last_affine="none")
    predictor: nn.Module = module("2-layer MLP of the student", name="mlp", hidden=4096, out=256, last_norm=True, last_affine="none")
    temperature: float = arg(0.2, "temperature of the softmax over similarities")
    ema: float = arg(0.99, "teacher momentum at the start; rises to 1 by a cosine")

    @property
    def teacher(self):
        return {"encoder": self.encoder, "projector": self.projector}

    def schedules(self, run):
        return {"ema": schedules.cosine(self.ema, 1.0, run.steps)}

    def init(self, rng, batch):
        params, stats = networks.init(self.parts, rng, batch["views"])
        return params, {"stats": stats, **networks.teacher(params, stats, self.teacher)}

    def encode(self, params, extra, batch, rng, s):
        r = jax.random.split(rng)
        taught, extra = networks.taught(self.teacher, extra, batch["views"], rng=r[0])
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"], rng=r[1])
        q, k = losses.normalise(out["predictor"]), losses.normalise(taught["projector"])  # (B, 2, D)
        return {"q": q, "k": k}, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        q, k = encodings["q"], encodings["k"]
        loss = losses.moco_v3(q[:, 0], q[:, 1], k[:, 0], k[:, 1], temperature=self.temperature)
        return loss, (extra, {"positive_similarity": (q * k[:, ::-1]).sum(-1).mean()})

    def after_step(self, params, extra, s):
        return networks.follow(extra, params, s["ema"])
