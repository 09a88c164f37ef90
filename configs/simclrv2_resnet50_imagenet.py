"""SimCLR v2 on ImageNet-1k, the paper's setting (Chen et al. 2020, arXiv 2006.10029, section 3): SimCLR with three layers in its projector
and a larger encoder; batch 4096, LARS, 800 epochs.

python -m ssljax.train --config configs/simclrv2_resnet50_imagenet.py --workdir gs://BUCKET/simclrv2 --distributed

Paper: v2's linear probe 71.7 % with ResNet-50; 79.8 with ResNet-152 three times as wide (`:depth=152,multiple=3`) and selective kernels,
which this ResNet does not have. The paper fine-tunes from the projector's first layer, not from below it.
Plan: v5e:8x8, data=64: 4.5 of 16 GiB a chip, at most 110,840 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=4096, epochs=800, depth=50, multiple=1)
    return imagenet.make(
        a,
        method=dict(
            name="simclr", temperature=0.1, encoder=resnet.size(a.depth, width=64 * a.multiple, dtype="bfloat16"),
            projector=dict(name="mlp", hidden=2048 * a.multiple, out=128, layers=3, last_norm=True),
        ),
        augment=recipes.make("simclr"),
        optim=dict(
            name="lars", momentum=0.9, weight_decay=1e-4,
            lr=dict(kind="cosine", peak=0.1 * a.batch**0.5, warmup_steps=imagenet.steps(a, 40)),
        ),
    )  # fmt: skip
