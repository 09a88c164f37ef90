"""VICRegL on ImageNet-1k, the authors' setting (Bardes et al. 2022, section 4): ResNet-50, two views, batch 2048, LARS, 300 epochs.

python -m ssljax.train --config configs/vicregl_resnet50_imagenet.py --workdir gs://BUCKET/vicregl --distributed

Paper: alpha 0.75: linear probe 70.4 %, 55.9 mIoU with a linear layer on VOC; alpha 0.9 (`:alpha=0.9`): 71.2 and 54.0.
Plan: v5e:8x8, data=64: 4.2 of 16 GiB a chip, at most 76,527 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=2048, epochs=300, alpha=0.75)
    peak = 0.2 * a.batch / 256
    return imagenet.make(
        a,
        method=dict(
            name="vicregl",
            alpha=a.alpha,
            matches=(20, 4),
            encoder=resnet.size(50, dtype="bfloat16"),
            projector=dict(name="mlp", hidden=8192, out=8192, layers=3, bias=(True, False), dtype="bfloat16"),
            maps_projector=dict(name="mlp", hidden=512, out=512, layers=3, bias=(True, False)),
        ),
        augment=recipes.make("byol", boxes=True),
        optim=dict(
            name="lars",
            lr=dict(kind="cosine", peak=peak, final=peak / 1000, warmup_steps=imagenet.steps(a, 10)),
            weight_decay=1e-6,
        ),
        groups=((r"^maps_projector/", dict(lr=0.1)),),
    )
