"""VICReg on ImageNet-1k, the paper's setting (Bardes et al. 2022, section 4.2): ResNet-50, batch 2048, LARS, 1000 epochs.

python -m ssljax.train --config configs/vicreg_resnet50_imagenet.py --workdir gs://BUCKET/vicreg --distributed

Paper: linear probe 73.2 % after 1000 epochs, 68.6 after 100 (`:epochs=100`, with the authors' rate of 0.3).
Plan: v5e:8x8, data=64: 3.9 of 16 GiB a chip, at most 79,398 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=2048, epochs=1000)
    projector = dict(name="mlp", hidden=8192, out=8192, layers=3, bias=(True, False), dtype="bfloat16")
    rate = 0.2 if a.epochs > 100 else 0.3
    return imagenet.make(
        a,
        method=dict(name="vicreg", encoder=resnet.size(50, dtype="bfloat16"), projector=projector),
        augment=recipes.make("byol"),
        optim=dict(
            name="lars",
            lr=dict(kind="cosine", peak=rate * a.batch / 256, final=0.002, warmup_steps=imagenet.steps(a, 10)),
            weight_decay=1e-6,
        ),
    )
