"""Hard negatives on STL-10, the paper's setting (Robinson et al. 2021, section 5.1): ResNet-50, batch 256, Adam, 400 epochs.

python -m ssljax.train --config configs/hardneg_resnet50_stl10.py --workdir gs://BUCKET/hardneg

Paper: linear accuracy about 7 points above SimCLR's at the same setting (figure 2). No evaluation on the way, since the images have no
labels: `python -m ssljax.evaluate --checkpoint ... --data tfds:stl10` afterwards.
Plan: v5e:4x4, data=16: 1.7 of 16 GiB a chip, at most 27,443 images/s (HBM).
"""

from ssljax import config as c
from ssljax.models import resnet

EXAMPLES = 100_000


def get_config(arg=""):
    a = c.parse(arg, batch=256, epochs=400)
    colour = dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, grey=0.2)
    return c.make(
        steps=round(a.epochs * EXAMPLES / a.batch),
        batch=a.batch,
        method=dict(
            name="hardneg", encoder=resnet.size(50, stem="cifar", dtype="bfloat16"), temperature=0.5, beta=1.0, prior=0.1,
            projector=dict(name="mlp", hidden=512, out=128),
        ),
        data=dict(
            source="tfds:stl10", train="unlabelled", image_size=64, features="n=64,height=96,width=96,classes=10",
        ),
        augment={"views": dict(count=2, size=64, scale=(0.08, 1.0), **colour)},
        optim=dict(name="adamw", lr=1e-3, weight_decay=1e-6),
        log=dict(every=100),
        checkpoint=dict(every=5000),
    )  # fmt: skip
