"""MoCHi on ImageNet-1k, the paper's setting (Kalantidis et al. 2020, section 4): MoCo v2's ResNet-50 and queue, batch 256, SGD, 200 epochs.

python -m ssljax.train --config configs/mochi_resnet50_imagenet.py --workdir gs://BUCKET/mochi --distributed

Paper: linear probe 68.0 % at best, where its MoCo v2 has 67.9; what it gains is in transfer to detection and segmentation.
Plan: v5e:4x4, data=16: 1.1 of 16 GiB a chip, at most 57,060 images/s (HBM).
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
            name="mochi", encoder=resnet.size(50, dtype="bfloat16"), queue=65536, ema=0.999, temperature=0.2,
            projector=dict(name="mlp", hidden=2048, out=128, norm="none"), hardest=1024, mixtures=1024, towards=128, warmup_epochs=10.0,
        ),
        augment=recipes.make("moco_v2"),
        optim=dict(name="sgd", momentum=0.9, weight_decay=1e-4, lr=dict(kind="cosine", peak=0.03)),
        groups=((".", dict(weight_decay=1.0)),),  # biases and norms as well, as MoCo's code has it
    )  # fmt: skip
