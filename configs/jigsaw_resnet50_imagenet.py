"""Jigsaw puzzles on ImageNet-1k with a ResNet-50 (Noroozi and Favaro 2016; the setting of Goyal et al. 2019).

python -m ssljax.train --config configs/jigsaw_resnet50_imagenet.py --workdir gs://BUCKET/jigsaw

Paper: 34.7 % linear with an AlexNet; 45.7 % with a ResNet-50 in Goyal et al. 2019.
Plan: v5e:4x4, data=16: 1.8 of 16 GiB a chip, at most 37,316 images/s (links).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=256, epochs=90)
    encoder = resnet.size(50, dtype="bfloat16")
    return imagenet.make(
        a,
        method=dict(name="jigsaw", encoder=encoder, head=dict(name="mlp", hidden=4096, out=1000), side=3),
        augment={"views": dict(count=1, size=224, scale=(0.2, 1.0))},
        optim=dict(name="sgd", momentum=0.9, lr=dict(kind="cosine", peak=0.1, warmup_steps=imagenet.steps(a, 5)), weight_decay=1e-4),
    )
