"""SimCLR on ImageNet-1k, the paper's setting (Chen et al. 2020, section 2 and appendix B): ResNet-50, batch 4096, LARS, 100 epochs.

python -m ssljax.train --config configs/simclr_resnet50_imagenet.py --workdir gs://BUCKET/simclr --distributed

Paper: linear probe 64.4 % after 100 epochs, 66.6 after 200, 69.7 after 800 (`:epochs=800`). Wants a TPU v3-128 or 32 GPUs.
Plan: v5e:8x8, data=64: 4.5 of 16 GiB a chip, at most 111,541 images/s (HBM).
"""

from ssljax import config as c
from ssljax.models import resnet

EXAMPLES = 1_281_167


def get_config(arg=""):
    a = c.parse(arg, batch=4096, epochs=100)
    epoch = EXAMPLES / a.batch
    return c.make(
        steps=round(a.epochs * epoch),
        batch=a.batch,
        method=dict(
            name="simclr",
            temperature=0.1,
            encoder=resnet.size(50, dtype="bfloat16"),
            projector=dict(name="mlp", hidden=2048, out=128, layers=2, last_norm=True),
        ),
        data=dict(
            source="tfds:imagenet2012", test="validation", image_size=224, resize_ratio=256 / 224,
            features="n=64,height=300-500,width=300-500,classes=1000",
        ),
        augment={
            "views": dict(
                count=2, size=224, scale=(0.08, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, jitter=0.8, grey=0.2,
                blur=(0.5,),
            )
        },
        # Square root scaling with the batch, as the paper has it for many epochs: 0.075 * sqrt(batch).
        optim=dict(
            name="lars", momentum=0.9, lr=dict(kind="cosine", peak=0.075 * a.batch**0.5, warmup_steps=round(10 * epoch)),
            weight_decay=1e-6,
        ),
        log=dict(every=100),
        checkpoint=dict(every=2000),
        evals=dict(every=round(10 * epoch), names=("knn",), train_examples=50_000),
    )  # fmt: skip
