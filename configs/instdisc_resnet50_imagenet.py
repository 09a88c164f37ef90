"""InstDisc on ImageNet-1k, the paper's setting (Wu et al. 2018, section 4.2): ResNet-50, batch 256, SGD, 4,096 noise rows, 200 epochs.

python -m ssljax.train --config configs/instdisc_resnet50_imagenet.py --workdir gs://BUCKET/instdisc --distributed

Paper: linear probe 54.0 %, kNN 46.5 %. The bank of 1.3 million rows takes 0.7 GB of each device, or a share of it under mesh.fsdp.
Plan: v5e:4x4, data=16: 1.5 of 16 GiB a chip, at most 86,830 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=256, epochs=200)
    return imagenet.make(
        a,
        method=dict(
            name="instdisc", encoder=resnet.size(50, dtype="bfloat16"), projector=dict(name="mlp", out=128, layers=1),
            examples=imagenet.EXAMPLES, noise=4096 // a.batch, temperature=0.07, momentum=0.5,
        ),
        augment={
            "views": dict(
                count=1, size=224, scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4, jitter=1.0, grey=0.2,
            )
        },
        optim=dict(
            name="sgd", momentum=0.9, weight_decay=1e-4,
            lr=dict(kind="stairs", peak=0.03, at=[imagenet.steps(a, e) for e in (120, 160)], factors=[0.1, 0.01]),
        ),
        groups=((".", dict(weight_decay=1.0)),),  # biases and norms as well, as the paper's code has it
    )  # fmt: skip
