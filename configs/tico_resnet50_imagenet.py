"""TiCo on ImageNet-1k (Zhu et al. 2022): ResNet-50, batch 4096, LARS, 1000 epochs; what the paper leaves open is as in BYOL.

python -m ssljax.train --config configs/tico_resnet50_imagenet.py --workdir gs://BUCKET/tico --distributed

Paper: linear probe 73.4 % after 1000 epochs.
Plan: v5e:8x8, data=64: 3.0 of 16 GiB a chip, at most 158,553 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=4096, epochs=1000)
    return imagenet.make(
        a,
        method=dict(
            name="tico",
            covariance_momentum=0.9,
            weight=20.0,
            ema=0.99,
            encoder=resnet.size(50, dtype="bfloat16"),
            projector=dict(name="mlp", hidden=4096, out=256),
        ),
        augment=recipes.make("byol"),
        optim=dict(
            name="lars",
            lr=dict(kind="cosine", peak=0.2 * a.batch / 256, warmup_steps=imagenet.steps(a, 10)),
            weight_decay=1.5e-6,
        ),
    )
