"""Objectives as pure functions of arrays: float in any precision, float32 out. They import no config, no data and no
checkpoints.
"""

from ssljax.losses.contrastive import (
    clip_softmax,
    dcl,
    distill_clip,
    enqueue,
    info_nce,
    moco_v3,
    multi_positive,
    normalise,
    nt_xent,
    pair_nt_xent,
    similarities,
    supcon,
    unicl,
)
from ssljax.losses.masked import mae, mae_target, patchify, random_masking, unpatchify
from ssljax.losses.selfdistill import dino, entropy, entropy_of_mean, update_centre
from ssljax.losses.sigmoid import siglip

__all__ = [
    "clip_softmax",
    "dcl",
    "dino",
    "distill_clip",
    "enqueue",
    "entropy",
    "entropy_of_mean",
    "info_nce",
    "mae",
    "mae_target",
    "moco_v3",
    "multi_positive",
    "normalise",
    "nt_xent",
    "pair_nt_xent",
    "patchify",
    "random_masking",
    "siglip",
    "similarities",
    "supcon",
    "unicl",
    "unpatchify",
    "update_centre",
]
