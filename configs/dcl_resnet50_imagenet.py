"""DCL on ImageNet-1k, the paper's setting (Yeh et al. 2022, section 4.1): SimCLR's ResNet-50 at batch 256, 200 epochs.

python -m ssljax.train --config configs/dcl_resnet50_imagenet.py --workdir gs://BUCKET/dcl --distributed

Paper: linear probe 67.8 % at batch 256 after 200 epochs, where SimCLR has 61.8; 68.2 with tuned hyper-parameters. DCLW: `:sigma=0.5`.
Plan: v5e:4x4, data=16: 1.5 of 16 GiB a chip, at most 32,987 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=256, epochs=200, sigma=0.0)
    return imagenet.make(
        a,
        method=dict(
            name="dcl", encoder=resnet.size(50, dtype="bfloat16"), temperature=0.1, sigma=a.sigma,
            projector=dict(name="mlp", hidden=2048, out=128, layers=2, last_norm=True),
        ),
        augment=recipes.make("simclr"),
        optim=dict(name="sgd", momentum=0.9, weight_decay=1e-4, lr=dict(kind="cosine", peak=0.03 * a.batch / 256)),
    )  # fmt: skip
