"""DeepCluster-v2 on ImageNet-1k, the authors' setting (Caron et al. 2020, appendix D): ResNet-50, 2 x 224 + 6 x 96, batch 4096.

python -m ssljax.train --config configs/deepcluster_v2_resnet50_imagenet.py --workdir gs://BUCKET/deepcluster_v2 --distributed

Paper: linear probe 75.2 % after 800 epochs, 74.3 after 400.
Plan: v5e:8x8, data=64: 12.2 of 16 GiB a chip, at most 67,065 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=4096, epochs=800)
    peak = 0.3 * a.batch / 256
    return imagenet.make(
        a,
        method=dict(
            name="deepcluster_v2",
            examples=imagenet.EXAMPLES,
            clusters=3000,
            clusterings=3,
            encoder=resnet.size(50, dtype="bfloat16"),
            projector=dict(name="mlp", hidden=2048, out=128, bias=(True, True)),
        ),
        augment=recipes.make("swav"),
        # LARC of the authors: every parameter is adapted and decays.
        optim=dict(
            name="lars",
            norm="separate",
            eps=1e-8,
            exclude="",
            lr=dict(kind="cosine", peak=peak, final=peak / 1000, warmup_steps=imagenet.steps(a, 10)),
            weight_decay=1e-6,
        ),
        groups=((r"/(bias|scale)$", dict(weight_decay=1.0)),),
    )
