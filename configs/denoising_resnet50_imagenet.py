"""Denoising autoencoder on ImageNet-1k with a ResNet-50 (Vincent et al. 2008, at a later scale).

python -m ssljax.train --config configs/denoising_resnet50_imagenet.py --workdir gs://BUCKET/denoising

Paper: none at this scale; it is the baseline that the others are held against.
Plan: v5e:4x4, data=16: 1.4 of 16 GiB a chip, at most 46,004 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=256, epochs=90)
    encoder = resnet.size(50, dtype="bfloat16")
    return imagenet.make(
        a,
        method=dict(name="denoising", encoder=encoder, decoder=dict(name="image_decoder", size=256, width=512, patch_size=4)),
        augment={"views": dict(count=1, size=256, scale=(0.2, 1.0))},
        optim=dict(name="sgd", momentum=0.9, lr=dict(kind="cosine", peak=0.1, warmup_steps=imagenet.steps(a, 5)), weight_decay=1e-4),
    )
