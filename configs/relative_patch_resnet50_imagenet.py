"""Context prediction on ImageNet-1k with a ResNet-50 (Doersch et al. 2015; the setting of Kolesnikov et al. 2019).

python -m ssljax.train --config configs/relative_patch_resnet50_imagenet.py --workdir gs://BUCKET/relative_patch

Paper: 31.7 % linear with an AlexNet; 46.8 % with a ResNet-50 in Kolesnikov et al. 2019.
Plan: v5e:4x4, data=16: 0.3 of 16 GiB a chip, at most 212,483 images/s (links).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=256, epochs=90)
    encoder = resnet.size(50, dtype="bfloat16")
    return imagenet.make(
        a,
        method=dict(name="relative_patch", encoder=encoder, head=dict(name="mlp", hidden=1024, out=8)),
        augment={"views": dict(count=1, size=224, scale=(0.2, 1.0))},
        optim=dict(name="sgd", momentum=0.9, lr=dict(kind="cosine", peak=0.1, warmup_steps=imagenet.steps(a, 5)), weight_decay=1e-4),
    )
