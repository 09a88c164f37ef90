"""W-MSE 4 on ImageNet-1k (Ermolov et al. 2021, section 4): ResNet-50, four views, slices of 256 at 128 dimensions, Adam.

python -m ssljax.train --config configs/w_mse_resnet50_imagenet.py --workdir gs://BUCKET/w_mse --distributed

Paper: linear probe 69.4 % after 100 epochs, 72.6 after 400. Batch and rates here are those of the authors' code for smaller sets.
Plan: v5e:4x4, data=16: 9.6 of 16 GiB a chip, at most 12,668 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=1024, epochs=100)
    epoch = imagenet.steps(a, 1)
    return imagenet.make(
        a,
        method=dict(
            name="w_mse",
            size=256,
            shrinkage=1e-3,  # so that a toy of a few rows runs as well; of no weight at 256
            encoder=resnet.size(50, dtype="bfloat16"),
            projector=dict(name="mlp", hidden=1024, out=128),
        ),
        augment=recipes.make("simclr", count=4),
        optim=dict(
            name="adamw",
            lr=dict(
                kind="stairs",
                peak=2e-3,
                warmup_steps=500,
                at=[(a.epochs - 50) * epoch, (a.epochs - 25) * epoch],
                factors=[0.2, 0.04],
            ),
            weight_decay=1e-6,
        ),
    )
