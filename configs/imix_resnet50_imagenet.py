"""i-Mix on ImageNet-1k, after the paper's setting (Lee et al. 2021, section 4.1): ResNet-50, SGD, 800 epochs.

python -m ssljax.train --config configs/imix_resnet50_imagenet.py --workdir gs://BUCKET/imix --distributed

Paper: linear probe 71.3 % on MoCo v2's queue of 65,536 keys, where MoCo v2 has 70.9. Here
the N-pair form, with the keys of a batch of 4,096.
Plan: v5e:8x8, data=64: 4.9 of 16 GiB a chip, at most 109,096 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=4096, epochs=800)
    return imagenet.make(
        a,
        method=dict(
            name="imix", encoder=resnet.size(50, dtype="bfloat16"), projector=dict(name="mlp", hidden=2048, out=128), temperature=0.2,
            alpha=1.0,
        ),
        augment=recipes.make("moco_v2"),
        optim=dict(
            name="lars", weight_decay=1e-4, lr=dict(kind="cosine", peak=0.3 * a.batch / 256, warmup_steps=imagenet.steps(a, 10)),
        ),
    )  # fmt: skip
