"""CPC on ImageNet-1k after CPC v2 (Henaff et al. 2019, section 4.1): ResNet-50 on 7 x 7 patches of 64 pixels, batch 512, Adam, 200 epochs.

python -m ssljax.train --config configs/cpc_resnet50_imagenet.py --workdir gs://BUCKET/cpc --distributed

Paper: linear probe 63.8 % with ResNet-50 (v2: layer norm, four directions), 48.7 with ResNet-101 (v1). Here, as in v1,
BatchNorm and one direction.
Plan: v5e:4x4, data=16: 5.2 of 16 GiB a chip, at most 13,854 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=512, epochs=200)
    return imagenet.make(
        a,
        method=dict(
            name="cpc", encoder=resnet.size(50, dtype="bfloat16"), side=7, rows=5, scale=0.1, drop_colours=1.0,
            context=dict(name="ssljax.models.context:RowContext", width=256, depth=5, dtype="bfloat16"),
            projector=dict(name="mlp", out=64, layers=1, bias=(False, False)),
        ),
        data=dict(image_size=256, resize_ratio=1.0),
        augment={
            "views": dict(count=1, size=256, scale=(0.3, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, grey=0.2),
        },
        optim=dict(name="adamw", b1=0.8, b2=0.999, weight_decay=0.0, lr=4e-4),
    )  # fmt: skip
