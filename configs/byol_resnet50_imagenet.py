"""BYOL on ImageNet-1k, the paper's setting (Grill et al. 2020, section 3.3 and appendix J): ResNet-50, batch 4096, LARS, 1000 epochs.

python -m ssljax.train --config configs/byol_resnet50_imagenet.py --workdir gs://BUCKET/byol --distributed

Paper: linear probe 74.3 % after 1000 epochs, 72.5 after 300 (`:epochs=300`, with that run's rates). Wants a TPU v3-512 for 8 hours.
Plan: v5e:8x8, data=64: 4.8 of 16 GiB a chip, at most 87,693 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=4096, epochs=1000)
    rate, decay, ema = (0.2, 1.5e-6, 0.996) if a.epochs >= 1000 else (0.3, 1e-6, 0.99) if a.epochs >= 300 else (0.45, 1e-6, 0.99)
    head = dict(name="mlp", hidden=4096, out=256, bias=(True, True))
    return imagenet.make(
        a,
        method=dict(name="byol", ema=ema, encoder=resnet.size(50, dtype="bfloat16"), projector=head, predictor=head),
        augment=recipes.make("byol"),
        optim=dict(
            name="lars",
            lr=dict(kind="cosine", peak=rate * a.batch / 256, warmup_steps=imagenet.steps(a, 10)),
            weight_decay=decay,
        ),
    )
