"""DirectCLR (Jing et al. 2022, arXiv 2110.09348): SimCLR without a projector, on the first few coordinates of the features."""

import dataclasses

import flax.linen as nn

from ssljax import losses, networks
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class DirectCLR(Method):
    """h = encoder(views); NT-Xent on normalise(h[:dim]) (section 6). The other coordinates learn through what the encoder shares."""

    encoder: nn.Module = module("the encoder whose features are kept", name="resnet")
    dim: int = arg(360, "coordinates that the loss sees, of a ResNet-50's 2,048")
    temperature: float = arg(0.1, "temperature of the softmax over similarities")

    def encode(self, params, extra, batch, rng, s):
        out, stats = networks.forward(self.parts, params, extra["stats"], batch["views"], rng=rng)
        return {"h": out["encoder"]["pooled"]}, {**extra, "stats": stats}  # (B, 2, D)

    def objective(self, params, extra, encodings, batch, s):
        h0, h1 = encodings["h"][:, 0], encodings["h"][:, 1]
        loss = losses.direct_clr(h0, h1, dim=self.dim, temperature=self.temperature)
        alike = lambda part: losses.rowwise(losses.normalise(h0[:, part]), losses.normalise(h1[:, part])).mean()  # noqa: E731
        metrics = {"positive_similarity": alike(slice(self.dim)), "unseen_similarity": alike(slice(self.dim, None))}
        return loss, (extra, metrics)
