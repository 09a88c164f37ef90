"""EVA's recipe on ImageNet-1k, ViT-g/14 (Fang et al. 2022, section 2.2; its own data are 30 M images).

python -m ssljax.train --config configs/eva_vitg14_imagenet.py --config.method.tower=gs://BUCKET/clip --workdir gs://BUCKET/eva

Paper: 89.6 % fine-tuned, ViT-g at 336, after ImageNet-21k.
Plan: v5p:8x8x8, data=512: 17.8 of 95 GiB a chip, at most 108,452 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import vit


def get_config(arg=""):
    a = c.parse(arg, batch=4096, epochs=150)
    encoder = vit.size("g/14", mask_token=True, pool="gap", drop_path=0.1, dtype="bfloat16", remat="full")
    return imagenet.make(
        a,
        method=dict(name="eva", encoder=encoder, mask_ratio=0.4),
        augment={"views": dict(count=1, size=224, scale=(0.2, 1.0))},
        optim=dict(
            name="adamw", b1=0.9, b2=0.98, clip_norm=3.0, weight_decay=0.05,
            lr=dict(kind="cosine", peak=1e-3, warmup_steps=imagenet.steps(a, 10), final=1e-5),
        ),
    )  # fmt: skip
