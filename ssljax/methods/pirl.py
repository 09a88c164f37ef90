"""PIRL (Misra and van der Maaten 2020, arXiv 1912.01991): an image and its shuffled jigsaw pieces have the same representation."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, models, networks
from ssljax.augment import geometry
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class PIRL(Method):
    """v = f(view); u = g(pieces of the other view, in random order); both are told from all images' rows of a memory bank by NCE
    (equation 5), then the image's own row moves towards v (section 2.2).

    Two groups of one view each in config.augment: "views", and "puzzle" for the pieces. The bank and its draws: see instdisc.py."""

    encoder: nn.Module = module("the encoder, of images and of pieces, whose features are kept", name="resnet")
    projector: nn.Module = module("f's head", name="mlp", out=128, layers=1)
    piece: nn.Module = module("g's head of each piece", name="mlp", out=128, layers=1)
    puzzle: nn.Module = module("g's head of all pieces' outputs, one after the other", name="mlp", out=128, layers=1)
    side: int = arg(3, "pieces a side")
    gap: float = arg(0.25, "share of a cell's side that its piece leaves out at random")
    weight: float = arg(0.5, "lambda, weight of the pieces; the image's is 1 - lambda")
    examples: int = arg(1_281_167, "rows of the bank: training examples, whose ids are below it")
    noise: int = arg(32, "rows that each image of a batch draws (the paper's 32,000 at a batch of 1,024)")
    temperature: float = arg(0.07, "temperature of the softmax over similarities")
    momentum: float = arg(0.5, "share of the old row when an image's row moves")

    @property
    def parts(self):
        return {"encoder": self.encoder, "projector": self.projector}

    @property
    def pieces(self):
        return {"encoder": self.encoder, "piece": self.piece}

    def schedules(self, run):
        networks.check_bank(self.examples, run)
        return {}

    def shuffled(self, rng, images):
        """Images (B, H, W, 3) -> their pieces (B, side^2, h, h, 3), in an order of its own each."""
        r = jax.random.split(rng)
        tiles = geometry.tiles(r[0], images, side=self.side, gap=self.gap)
        order = jnp.argsort(jax.random.uniform(r[1], tiles.shape[:2]), axis=1)
        return jnp.take_along_axis(tiles, order[:, :, None, None, None], axis=1)

    def init(self, rng, batch):
        r = jax.random.split(rng, 5)
        params, stats = networks.init(self.parts, r[0], batch["views"])
        tiles = self.shuffled(r[1], batch["puzzle"][:, 0])
        out, _ = networks.forward({"encoder": self.encoder}, params, stats, tiles, train=False)
        params["piece"], stats["piece"] = models.init(self.piece, r[2], out["encoder"]["pooled"][:, 0], train=False)
        every = jnp.zeros((len(tiles), self.side**2 * self.piece.out))
        params["puzzle"], stats["puzzle"] = models.init(self.puzzle, r[3], every, train=False)
        return params, {"stats": stats, "bank": networks.directions(r[4], self.examples, self.projector.out), "log_mean": jnp.zeros(())}

    def encode(self, params, extra, batch, rng, s):
        r, batch_size = jax.random.split(rng, 4), len(batch["views"])
        image, stats = networks.forward(self.parts, params, extra["stats"], batch["views"][:, :1], rng=r[0])
        pieces, stats = networks.forward(self.pieces, params, stats, self.shuffled(r[1], batch["puzzle"][:, 0]), rng=r[2])
        every = pieces["piece"].reshape(batch_size, -1)  # (B, side^2 D)
        u, stats["puzzle"] = models.apply(self.puzzle, params["puzzle"], stats["puzzle"], every, train=True)
        noise = jax.random.randint(r[3], (batch_size, self.noise), 0, self.examples)
        encodings = {"v": losses.normalise(image["projector"][:, 0]), "u": losses.normalise(u), "noise": noise}
        return encodings, {**extra, "stats": stats}

    def objective(self, params, extra, encodings, batch, s):
        bank = extra["bank"]
        own, drawn = bank[batch["id"]], bank[encodings["noise"].reshape(-1)]  # (B, D), (B noise, D)
        noise = {name: losses.similarities(encodings[name], drawn) / self.temperature for name in ("u", "v")}
        log_mean = jnp.where(extra["log_mean"] == 0, losses.log_mean_exp(noise["v"]), extra["log_mean"])
        similar = {name: losses.rowwise(encodings[name], own) for name in ("u", "v")}
        each = {name: losses.nce(similar[name] / self.temperature, noise[name], log_mean) for name in ("u", "v")}
        loss = self.weight * each["u"] + (1 - self.weight) * each["v"]
        extra = {**extra, "bank": networks.remember(bank, batch["id"], encodings["v"], self.momentum), "log_mean": log_mean}
        metrics = {"image_similarity": similar["v"].mean(), "pieces_similarity": similar["u"].mean()}
        return loss, (extra, metrics)
