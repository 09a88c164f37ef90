"""SupCon on ImageNet-1k with its labels, the published run: ResNet-50, batch 6144, LARS, AutoAugment, 350 epochs.

python -m ssljax.train --config configs/supcon_resnet50_imagenet.py --workdir gs://BUCKET/supcon --distributed

Paper: linear classifier 78.7 % (table 3).
Plan: v5e:16x16, data=256: 2.1 of 16 GiB a chip, at most 438,619 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=6144, epochs=350)
    return imagenet.make(
        a,
        method=dict(
            name="supcon", encoder=resnet.size(50, dtype="bfloat16"), temperature=0.1, projector=dict(name="mlp", out=128, layers=1),
        ),
        augment={"views": dict(count=2, size=224, scale=(0.08, 1.0), auto_augment=True, blur=(0.5,))},
        optim=dict(
            name="lars", weight_decay=1e-3, lr=dict(kind="cosine", peak=0.4 * a.batch / 256, warmup_steps=imagenet.steps(a, 5)),
        ),
    )  # fmt: skip
