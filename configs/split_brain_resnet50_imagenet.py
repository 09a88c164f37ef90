"""Split-brain autoencoder on ImageNet-1k with two ResNet-50 (Zhang et al. 2017).

python -m ssljax.train --config configs/split_brain_resnet50_imagenet.py --workdir gs://BUCKET/split_brain

Paper: 35.4 % linear with an AlexNet.
Plan: v5e:4x4, data=16: 1.8 of 16 GiB a chip, at most 36,565 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=256, epochs=90)
    encoder = resnet.size(50, dtype="bfloat16")
    return imagenet.make(
        a,
        method=dict(name="split_brain", encoder=encoder, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        augment={"views": dict(count=1, size=224, scale=(0.2, 1.0))},
        optim=dict(name="sgd", momentum=0.9, lr=dict(kind="cosine", peak=0.1, warmup_steps=imagenet.steps(a, 5)), weight_decay=1e-4),
    )
