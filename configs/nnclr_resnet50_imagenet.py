"""NNCLR on ImageNet-1k, the paper's setting (Dwibedi et al. 2021, section 4.1): ResNet-50, batch 4096, LARS, 98,304 supports, 1000 epochs.

python -m ssljax.train --config configs/nnclr_resnet50_imagenet.py --workdir gs://BUCKET/nnclr --distributed

Paper: linear probe 75.4 % after 1000 epochs, 70.7 after 200 (`:epochs=200`).
Plan: v5e:8x8, data=64: 4.7 of 16 GiB a chip, at most 108,491 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=4096, epochs=1000)
    return imagenet.make(
        a,
        method=dict(
            name="nnclr", encoder=resnet.size(50, dtype="bfloat16"), queue=98304, temperature=0.1,
            projector=dict(name="mlp", hidden=2048, out=256, layers=3, last_norm=True),
            predictor=dict(name="mlp", hidden=4096, out=256),
        ),
        augment=recipes.make("simclr"),
        optim=dict(
            name="lars", weight_decay=1e-6, lr=dict(kind="cosine", peak=0.3 * a.batch / 256, warmup_steps=imagenet.steps(a, 10)),
        ),
    )  # fmt: skip
