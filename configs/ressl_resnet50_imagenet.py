"""ReSSL on ImageNet-1k, the paper's setting (Zheng et al. 2021, section 4.2): ResNet-50, batch 256, SGD, 131,072 keys, 200 epochs.

python -m ssljax.train --config configs/ressl_resnet50_imagenet.py --workdir gs://BUCKET/ressl --distributed

Paper: linear probe 69.9 % after 200 epochs.
Plan: v5e:4x4, data=16: 1.7 of 16 GiB a chip, at most 41,718 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=256, epochs=200)
    return imagenet.make(
        a,
        method=dict(
            name="ressl", encoder=resnet.size(50, dtype="bfloat16"), queue=131072, ema=0.999,
            projector=dict(name="mlp", hidden=4096, out=512), student_temperature=0.1, teacher_temperature=0.04,
        ),
        augment={**recipes.make("moco_v2", count=1), "weak": dict(count=1, size=224, scale=(0.2, 1.0))},
        optim=dict(
            name="sgd", momentum=0.9, weight_decay=1e-4, lr=dict(kind="cosine", peak=0.05, warmup_steps=imagenet.steps(a, 5)),
        ),
    )  # fmt: skip
