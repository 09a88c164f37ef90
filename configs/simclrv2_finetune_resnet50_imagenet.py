"""SimCLR v2's second stage on ImageNet-1k: fine-tuned from the projector's first layer (Chen et al. 2020, section 3 and appendix B).

python -m ssljax.train --config configs/simclrv2_finetune_resnet50_imagenet.py --config.init.checkpoint=gs://BUCKET/simclrv2 \
    --workdir gs://BUCKET/simclrv2_finetuned --distributed

Paper: 76.3 % with all labels, 57.9 with one in a hundred, ResNet-50.
Plan: v5e:4x4, data=16: 2.8 of 16 GiB a chip, at most 55,362 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=1024, epochs=60)
    return imagenet.make(
        a,
        method=dict(name="supervised", encoder=resnet.size(50, dtype="bfloat16"), hidden=2048, classes=1000),
        augment={"views": dict(count=1, size=224)},
        init=dict(drop="projector/(fc2|fc3|bn2|bn3)"),
        optim=dict(name="lars", lr=dict(kind="cosine", peak=0.005 * a.batch**0.5), weight_decay=0.0),
    )
