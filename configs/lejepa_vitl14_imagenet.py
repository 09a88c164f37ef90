"""LeJEPA on ImageNet-1k, the authors' setting (Balestriero and LeCun 2025): ViT-L/14, 2 x 224 + 6 x 98 crops, AdamW, 100 epochs.

python -m ssljax.train --config configs/lejepa_vitl14_imagenet.py --workdir gs://BUCKET/lejepa --distributed

Paper: ViT-H/14 reaches a linear probe of 79 %; ViT-L after 100 epochs an average of 79.5 % over eight transfer sets.
Plan: v5e:16x16, data=256: 9.2 of 16 GiB a chip, at most 11,961 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import vit


def get_config(arg=""):
    a = c.parse(arg, batch=512, epochs=100)
    groups = recipes.make("dino", crops=6, scale=(0.3, 1.0), blur=(0.5,), solarize=(0.2,))
    groups["crops"].update(size=98, scale=(0.05, 0.3), solarize=(0.2,))
    return imagenet.make(
        a,
        method=dict(
            name="lejepa",
            weight=0.05,
            directions=1024,
            encoder=vit.size("L/14", dtype="bfloat16"),
            projector=dict(name="mlp", hidden=2048, out=64, layers=3),
        ),
        augment=groups,
        optim=dict(
            name="adamw",
            lr=dict(kind="cosine", peak=5e-4, final=5e-7, warmup_steps=imagenet.steps(a, 10)),
            weight_decay=5e-2,
        ),
    )
