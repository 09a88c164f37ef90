"""PIRL on ImageNet-1k, the paper's setting (Misra and van der Maaten 2020, section 3): ResNet-50, batch 1024, SGD, 32,000 noise rows,
800 epochs.

python -m ssljax.train --config configs/pirl_resnet50_imagenet.py --workdir gs://BUCKET/pirl --distributed

Paper: linear probe 63.6 %.
Plan: v5e:4x4, data=16: 5.0 of 16 GiB a chip, at most 29,272 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import resnet

COLOUR = dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2, jitter=1.0, grey=0.2)


def get_config(arg=""):
    a = c.parse(arg, batch=1024, epochs=800)
    head = dict(name="mlp", out=128, layers=1)
    return imagenet.make(
        a,
        method=dict(
            name="pirl", encoder=resnet.size(50, dtype="bfloat16"), projector=head, piece=head, puzzle=head, side=3, gap=0.25,
            weight=0.5, examples=imagenet.EXAMPLES, noise=32_000 // a.batch, temperature=0.07, momentum=0.5,
        ),
        # Pieces of 64 from cells of 85 pixels.
        augment={
            "views": dict(count=1, size=224, scale=(0.08, 1.0), **COLOUR),
            "puzzle": dict(count=1, size=255, scale=(0.6, 1.0), **COLOUR),
        },
        optim=dict(name="sgd", momentum=0.9, weight_decay=1e-4, lr=dict(kind="cosine", peak=0.03 * a.batch / 256, final=1.2e-4)),
    )  # fmt: skip
