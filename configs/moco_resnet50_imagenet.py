"""MoCo v2 (and v1 by `:version=1`) on ImageNet-1k, the papers' setting: ResNet-50, batch 256, SGD, 65,536 keys, 200 epochs.

python -m ssljax.train --config configs/moco_resnet50_imagenet.py --workdir gs://BUCKET/moco --distributed

Paper: linear probe 67.5 % after 200 epochs and 71.1 after 800 (v2, table 2); 60.6 after 200 (v1, table 1).
Plan: v5e:4x4, data=16: 1.1 of 16 GiB a chip, at most 58,660 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=256, epochs=200, version=2)
    second = a.version == 2
    return imagenet.make(
        a,
        method=dict(
            name="moco", encoder=resnet.size(50, dtype="bfloat16"), queue=65536, ema=0.999, temperature=0.2 if second else 0.07,
            projector=dict(name="mlp", hidden=2048, out=128, layers=2 if second else 1, norm="none"),
        ),
        augment=recipes.make("moco_v2", **({} if second else dict(blur=(0.0,), jitter=1.0, hue=0.4))),
        optim=dict(
            name="sgd", momentum=0.9, weight_decay=1e-4,
            # v2 falls by a cosine, v1 by a factor of ten at epochs 120 and 160 of 200.
            lr=dict(kind="cosine", peak=0.03) if second else dict(
                kind="stairs", peak=0.03, at=[imagenet.steps(a, a.epochs * part) for part in (0.6, 0.8)], factors=[0.1, 0.01]
            ),
        ),
        groups=((".", dict(weight_decay=1.0)),),  # biases and norms as well, as the papers' code has it
    )  # fmt: skip
