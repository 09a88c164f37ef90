"""LiT, a text tower tuned to a locked ViT-L/16 (Zhai et al. 2021, section 4), batch 16,384; SigLiT: --config.method.sigmoid=true.

python -m ssljax.train --config configs/lit_vitl16_webimages.py --config.method.tower=DIR --workdir gs://BUCKET/lit

Paper: 75.7 % zero-shot on ImageNet-1k of public data alone (CC12M and YFCC100M), an L/16 pretrained on ImageNet-21k. There Adafactor.
`tower` is a run of any method here, or what ssljax.convert makes of public weights; without it the tower is random, a baseline.
Plan: v5e:16x16, data=256: 7.7 of 16 GiB a chip, at most 339,804 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax import webimages
from ssljax.models import text, vit


def get_config(arg=""):
    a = c.parse(arg, batch=16384, examples=983_000_000)
    tower = text.size("L", vocab_size=32_000, length=16, dtype="bfloat16", remat="dots")
    return webimages.make(
        a,
        method=dict(name="lit", encoder=vit.size("L/16", dtype="bfloat16"), text=tower),
        augment={"views": dict(count=1, size=224, scale=(0.9, 1.0), flip=0.0)},
        optim=dict(name="adamw", clip_norm=1.0, lr=dict(kind="cosine", peak=1e-3, warmup_steps=10_000), weight_decay=1e-4),
    )
