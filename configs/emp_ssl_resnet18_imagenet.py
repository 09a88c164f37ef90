"""EMP-SSL on ImageNet-1k: ResNet-18, 20 small crops of an image, batch 100, LARS, ten epochs (Tong et al. 2023, section 3).

python -m ssljax.train --config configs/emp_ssl_resnet18_imagenet.py --workdir gs://BUCKET/emp_ssl --distributed

Paper: on ImageNet-100 (a `folder:` of 100 classes) a linear probe of 58.5 % after one epoch, 78.9 within ten.
Plan: v5e:2x2, data=4: 1.6 of 16 GiB a chip, at most 8,784 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=100, epochs=10)
    return imagenet.make(
        a,
        method=dict(
            name="emp_ssl",
            eps=0.2,
            invariance=200.0,
            encoder=resnet.size(18, dtype="bfloat16"),
            projector=dict(name="mlp", hidden=4096, out=1024),
        ),
        augment=recipes.make("simclr", size=128, count=20, scale=(0.08, 0.25)),
        optim=dict(
            name="lars",
            trust_coefficient=0.005,
            lr=dict(kind="cosine", peak=0.3, warmup_steps=imagenet.steps(a, 0.1)),
            weight_decay=1e-4,
        ),
    )
