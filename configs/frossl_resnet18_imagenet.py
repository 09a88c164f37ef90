"""FroSSL on ImageNet-1k, the authors' setting (Skean et al. 2024): ResNet-18, batch 256, LARS, 100 epochs.

python -m ssljax.train --config configs/frossl_resnet18_imagenet.py --workdir gs://BUCKET/frossl --distributed

Paper: judges on ImageNet-100 and smaller sets and prints no number of this run, whose settings are in the authors' code.
Plan: v5e:4x4, data=16: 0.6 of 16 GiB a chip, at most 90,058 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=256, epochs=100)
    return imagenet.make(
        a,
        method=dict(
            name="frossl",
            invariance=2.0,
            encoder=resnet.size(18, dtype="bfloat16"),
            projector=dict(name="mlp", hidden=2048, out=1024, layers=3),
        ),
        augment=recipes.make("byol"),
        optim=dict(
            name="lars",
            trust_coefficient=0.02,
            clip=True,
            lr=dict(kind="cosine", peak=0.3 * a.batch / 256, warmup_steps=imagenet.steps(a, 10)),
            weight_decay=1e-4,
        ),
    )
