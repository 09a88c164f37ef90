"""DirectCLR on ImageNet-1k, the paper's setting (Jing et al. 2022, section 6): ResNet-50, batch 4096, LARS, 100 epochs.

python -m ssljax.train --config configs/directclr_resnet50_imagenet.py --workdir gs://BUCKET/directclr --distributed

Paper: linear probe 62.7 % after 100 epochs; without a projector SimCLR has 51.5, with a linear one 61.1, with its MLP 66.5.
Plan: v5e:8x8, data=64: 4.4 of 16 GiB a chip, at most 113,461 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=4096, epochs=100)
    return imagenet.make(
        a,
        method=dict(name="directclr", encoder=resnet.size(50, dtype="bfloat16"), dim=360, temperature=0.1),
        augment=recipes.make("byol"),
        optim=dict(
            name="lars", weight_decay=1e-6, lr=dict(kind="cosine", peak=0.3 * a.batch / 256, warmup_steps=imagenet.steps(a, 10)),
        ),
    )  # fmt: skip
