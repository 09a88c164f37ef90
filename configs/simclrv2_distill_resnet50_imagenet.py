"""SimCLR v2's third stage on ImageNet-1k: a fine-tuned classifier's answers taught without labels (Chen et al. 2020, section 3).

python -m ssljax.train --config configs/simclrv2_distill_resnet50_imagenet.py --config.method.teacher=gs://BUCKET/simclrv2_finetuned \
    --workdir gs://BUCKET/simclrv2_distilled --distributed

Paper: 73.9 % with one label in a hundred, ResNet-50 taught by ResNet-152 x3; 77.5 with one in ten.
Plan: v5e:8x8, data=64: 2.8 of 16 GiB a chip, at most 201,129 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=4096, epochs=400)
    return imagenet.make(
        a,
        method=dict(name="distill", encoder=resnet.size(50, dtype="bfloat16"), classes=1000, temperature=0.1),
        augment={"views": dict(count=1, size=224)},
        optim=dict(name="lars", weight_decay=1e-4, lr=dict(kind="cosine", peak=0.3 * a.batch / 256, warmup_steps=imagenet.steps(a, 10))),
    )
