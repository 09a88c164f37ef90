"""DINO on ImageNet-1k, the paper's setting (Caron et al. 2021, section 3.2): ViT-S/16, batch 1024, 2 x 224 + 8 x 96 crops, 100 epochs.

python -m ssljax.train --config configs/dino_vits16_imagenet.py --workdir gs://BUCKET/dino --distributed

Paper's code: 73.3 % linear and 67.5 % kNN with ViT-S/16 after 100 epochs with two machines of eight GPUs; 77.0 and 74.5 after 800.
Plan: v5e:4x4, data=16: 11.6 of 16 GiB a chip, at most 17,599 images/s (HBM).
"""

from ssljax import config as c
from ssljax.models import vit

EXAMPLES = 1_281_167
COLOUR = dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter=0.8, grey=0.2)


def get_config(arg=""):
    a = c.parse(arg, batch=1024, epochs=100)
    epoch = EXAMPLES / a.batch
    return c.make(
        steps=round(a.epochs * epoch),
        batch=a.batch,
        method=dict(
            name="dino",
            student_temperature=0.1,
            teacher_temperature=0.04,
            warmup_teacher_temperature=0.04,
            ema=0.996,
            freeze_last_layer_steps=round(epoch),
            encoder=vit.size("S/16", drop_path=0.1, dtype="bfloat16"),
            head=dict(name="dino_head", hidden=2048, bottleneck=256, out=65536, layers=3, dtype="bfloat16"),
        ),
        data=dict(
            source="tfds:imagenet2012", test="validation", image_size=224, resize_ratio=256 / 224,
            features="n=64,height=300-500,width=300-500,classes=1000",
        ),
        augment={
            "views": dict(count=2, size=224, scale=(0.25, 1.0), blur=(1.0, 0.1), solarize=(0.0, 0.2), **COLOUR),
            "crops": dict(count=8, size=96, scale=(0.05, 0.25), blur=(0.5,), **COLOUR),
        },
        optim=dict(
            name="adamw", clip_norm=3.0,
            lr=dict(kind="cosine", peak=5e-4 * a.batch / 256, final=1e-6, warmup_steps=round(10 * epoch)),
            weight_decay=dict(kind="cosine", peak=0.04, final=0.4),
        ),
        log=dict(every=100),
        checkpoint=dict(every=2000),
        evals=dict(every=round(10 * epoch), names=("knn",), train_examples=50_000),
    )  # fmt: skip
