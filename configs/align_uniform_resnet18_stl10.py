"""Alignment and uniformity on STL-10, the published run (Wang and Isola 2020, section 5): batch 768, SGD, 200 epochs.

python -m ssljax.train --config configs/align_uniform_resnet18_stl10.py --workdir gs://BUCKET/align_uniform

Paper: linear accuracy 83.2 % (its code's figure) with a small AlexNet, in whose place there is a ResNet-18 here. No evaluation on the way,
since the images have no labels: `python -m ssljax.evaluate --checkpoint ... --data tfds:stl10` afterwards.
Plan: v5e:4x4, data=16: 0.9 of 16 GiB a chip, at most 118,349 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax.models import resnet

EXAMPLES = 100_000


def get_config(arg=""):
    a = c.parse(arg, batch=768, epochs=200)
    steps = lambda epochs: round(epochs * EXAMPLES / a.batch)  # noqa: E731
    colour = dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4, jitter=1.0, grey=0.2)
    return c.make(
        steps=steps(a.epochs),
        batch=a.batch,
        method=dict(
            name="align_uniform", encoder=resnet.size(18, stem="cifar", dtype="bfloat16"), projector=dict(name="mlp", out=128, layers=1),
            power=2.0, t=2.0, weight=1.0,
        ),
        data=dict(source="tfds:stl10", train="unlabelled", image_size=64, features="n=64,height=96,width=96,classes=10"),
        augment={"views": dict(count=2, size=64, scale=(0.08, 1.0), **colour)},
        optim=dict(
            name="sgd", momentum=0.9, weight_decay=1e-4,
            lr=dict(kind="stairs", peak=0.12 * a.batch / 256, at=[steps(e) for e in (155, 170, 185)], factors=[0.1, 0.01, 0.001]),
        ),
        log=dict(every=100),
        checkpoint=dict(every=5000),
    )  # fmt: skip
