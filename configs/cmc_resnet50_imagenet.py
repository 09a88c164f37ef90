"""CMC on ImageNet-1k, the published run (Tian et al. 2020, section 4.1): two ResNet-50 of half width, for L and ab, SGD, 240 epochs.

python -m ssljax.train --config configs/cmc_resnet50_imagenet.py --workdir gs://BUCKET/cmc --distributed

Paper: linear probe about 63 % (its code's figure) on the features of both, with 16,384 negatives of a memory bank. Here negatives are those
of a batch of 4,096, and the learning rate grows with its square root.
Plan: v5e:8x8, data=64: 2.8 of 16 GiB a chip, at most 247,340 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=4096, epochs=240)
    return imagenet.make(
        a,
        method=dict(
            name="cmc", encoder=resnet.size(50, width=32, dtype="bfloat16"), projector=dict(name="mlp", out=128, layers=1),
            temperature=0.07,
        ),
        augment={"views": dict(count=1, size=224, scale=(0.08, 1.0))},
        optim=dict(
            name="sgd", momentum=0.9, weight_decay=1e-4,
            lr=dict(
                kind="stairs", peak=0.03 * (a.batch / 128) ** 0.5, warmup_steps=imagenet.steps(a, 5),
                at=[imagenet.steps(a, e) for e in (120, 160, 200)], factors=[0.1, 0.01, 0.001],
            ),
        ),
    )  # fmt: skip
