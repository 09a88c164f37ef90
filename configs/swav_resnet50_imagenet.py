"""SwAV on ImageNet-1k, the paper's setting (Caron et al. 2020, appendix A): ResNet-50, 2 x 224 + 6 x 96 crops, batch 4096, LARS.

python -m ssljax.train --config configs/swav_resnet50_imagenet.py --workdir gs://BUCKET/swav --distributed

Paper: linear probe 75.3 % after 800 epochs, 73.9 after 200, 72.1 after 100; `:batch=256,epochs=200,queue=3840`: 72.7, on 4 GPUs.
Plan: v5e:8x8, data=64: 6.9 of 16 GiB a chip, at most 71,646 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=4096, epochs=800, queue=0)
    peak = 0.3 * a.batch / 256 if a.batch > 256 else 0.6
    return imagenet.make(
        a,
        method=dict(
            name="swav",
            prototypes=3000,
            temperature=0.1,
            epsilon=0.05,
            queue=a.queue,
            queue_start_epochs=15.0,
            freeze_prototypes_steps=imagenet.steps(a, 1),
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
