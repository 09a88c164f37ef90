"""SimSiam on ImageNet-1k, the paper's setting (Chen and He 2021, section 3): ResNet-50, batch 512, SGD, 100 epochs.

python -m ssljax.train --config configs/simsiam_resnet50_imagenet.py --workdir gs://BUCKET/simsiam --distributed

Paper: linear probe 68.1 % after 100 epochs, 70.0 after 200, 71.3 after 800. (The authors keep the predictor's learning rate constant.)
Plan: v5e:4x4, data=16: 2.8 of 16 GiB a chip, at most 24,940 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=512, epochs=100)
    projector = dict(name="mlp", hidden=2048, out=2048, layers=3, last_norm=True, last_affine="none")
    return imagenet.make(
        a,
        method=dict(
            name="simsiam",
            encoder=resnet.size(50, dtype="bfloat16"),
            projector=projector,
            predictor=dict(name="mlp", hidden=512, out=2048),
        ),
        augment=recipes.make("moco_v2"),
        optim=dict(name="sgd", momentum=0.9, lr=dict(kind="cosine", peak=0.05 * a.batch / 256), weight_decay=1e-4),
        groups=((r".", dict(weight_decay=1.0)),),  # biases and norms as well
    )
