"""VQ-KD on ImageNet-1k, ViT-B/16, 100 epochs, BEiT v2's first stage (Peng et al. 2022, appendix C).

python -m ssljax.train --config configs/vqkd_vitb16_imagenet.py --config.method.tower=gs://BUCKET/clip --workdir gs://BUCKET/vqkd

Paper: none of its own; its words take BEiT v2 to 85.5 %.
Plan: v5e:4x4, data=16: 5.9 of 16 GiB a chip, at most 23,611 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import vit


def get_config(arg=""):
    a = c.parse(arg, batch=512, epochs=100)
    encoder = vit.size("B/16", class_token=False, pool="gap", dtype="bfloat16")
    return imagenet.make(
        a,
        method=dict(name="vqkd", encoder=encoder, codes=8192, width=32),
        augment={"views": dict(count=1, size=224, scale=(0.6, 1.0))},
        optim=dict(
            name="adamw", b1=0.9, b2=0.99, clip_norm=0.0, weight_decay=0.05,
            lr=dict(kind="cosine", peak=2e-4, warmup_steps=imagenet.steps(a, 10), final=1e-5),
        ),
    )  # fmt: skip
