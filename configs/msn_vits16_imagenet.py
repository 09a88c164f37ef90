"""MSN on ImageNet-1k, the authors' setting (Assran et al. 2022, appendix B): ViT-S/16, 15 % of patches left out, 800 epochs.

python -m ssljax.train --config configs/msn_vits16_imagenet.py --workdir gs://BUCKET/msn --distributed

Paper: linear probe 76.9 % after 800 epochs; with 1 % of the labels 67.2.
Plan: v5e:4x4, data=16: 8.0 of 16 GiB a chip, at most 24,521 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import vit


def get_config(arg=""):
    a = c.parse(arg, batch=1024, epochs=800)
    groups = recipes.make("dino", crops=10, count=2, scale=(0.3, 1.0), blur=(0.5,), solarize=(0.0,))
    colour = dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)  # SimCLR's at strength 0.5
    groups["views"].update(colour)
    groups["crops"].update(colour, scale=(0.05, 0.3))
    return imagenet.make(
        a,
        method=dict(
            name="msn",
            prototypes=1024,
            mask_ratio=0.15,
            temperature=0.1,
            sharpening=0.25,
            sinkhorn=3,
            encoder=vit.size("S/16", dtype="bfloat16"),
            projector=dict(name="mlp", hidden=2048, out=256, layers=3),
        ),
        augment=groups,
        optim=dict(
            name="adamw",
            clip_norm=3.0,
            lr=dict(kind="cosine", peak=1e-3, final=1e-6, warmup_start=2e-4, warmup_steps=imagenet.steps(a, 15)),
            weight_decay=dict(kind="cosine", peak=0.04, final=0.4),
        ),
    )
