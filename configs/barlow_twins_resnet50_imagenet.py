"""Barlow Twins on ImageNet-1k, the paper's setting (Zbontar et al. 2021, section 2.2): ResNet-50, batch 2048, LARS, 1000 epochs.

python -m ssljax.train --config configs/barlow_twins_resnet50_imagenet.py --workdir gs://BUCKET/barlow_twins --distributed

Paper: linear probe 73.2 % after 1000 epochs. On 32 V100 GPUs for 124 hours.
Plan: v5e:8x8, data=64: 3.9 of 16 GiB a chip, at most 79,356 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=2048, epochs=1000)
    projector = dict(name="mlp", hidden=8192, out=8192, layers=3, bias=(False, False), dtype="bfloat16")
    peak = 0.2 * a.batch / 256
    return imagenet.make(
        a,
        method=dict(name="barlow_twins", off_diagonal=0.0051, encoder=resnet.size(50, dtype="bfloat16"), projector=projector),
        augment=recipes.make("byol"),
        optim=dict(
            name="lars",
            lr=dict(kind="cosine", peak=peak, final=peak / 1000, warmup_steps=imagenet.steps(a, 10)),
            weight_decay=1.5e-6,
        ),
        groups=((r"/(bias|scale)$", dict(lr=0.0048 / 0.2)),),
    )
