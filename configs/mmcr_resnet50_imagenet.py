"""MMCR on ImageNet-1k, the authors' setting (Yerxa et al. 2023, section 4): ResNet-50, eight views, batch 2048, LARS, 100 epochs.

python -m ssljax.train --config configs/mmcr_resnet50_imagenet.py --workdir gs://BUCKET/mmcr --distributed

Paper: linear probe 72.1 % after 100 epochs with eight views, 71.4 with four, 69.5 with two (`:views=2`).
Plan: v5e:8x8, data=64: 9.8 of 16 GiB a chip, at most 24,181 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=2048, epochs=100, views=8)
    peak = 0.8 * a.batch / 256
    return imagenet.make(
        a,
        method=dict(
            name="mmcr",
            encoder=resnet.size(50, dtype="bfloat16"),
            projector=dict(name="mlp", hidden=8192, out=512, layers=3, bias=(False, False), dtype="bfloat16"),
        ),
        augment=recipes.make("byol", count=a.views, blur=(0.5,), solarize=(0.1,)),
        optim=dict(
            name="lars",
            lr=dict(kind="cosine", peak=peak, final=peak / 1000, warmup_steps=imagenet.steps(a, 10)),
            weight_decay=1e-6,
        ),
    )
