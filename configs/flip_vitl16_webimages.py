"""FLIP, ViT-L/16 on half of the patches (Li et al. 2022, section 3 and appendix A), batch 65,536, 32 epochs of 400 M pairs; then the whole
pictures for a little while: `:mask_ratio=0.0,examples=128_000_000` with --config.init.checkpoint=gs://BUCKET/flip.

python -m ssljax.train --config configs/flip_vitl16_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/flip

Paper: 74.3 % zero-shot on ImageNet-1k, ViT-L/16 on LAION-400M.
Plan: v5p:8x8x8, data=512: 14.9 of 95 GiB a chip, at most 1,059,686 images/s (HBM).
"""

from ssljax import config as c
from ssljax import webimages
from ssljax.models import text, vit


def get_config(arg=""):
    a = c.parse(arg, batch=65536, examples=12_800_000_000, mask_ratio=0.5)
    encoder = vit.size("L/16", position="sincos_mae", pool="gap", class_token=False, out=768, dtype="bfloat16", remat="dots")
    tower = text.size("B", vocab_size=32_000, length=32, pool="gap", out=768, dtype="bfloat16", remat="dots")
    return webimages.make(
        a,
        method=dict(name="clip", encoder=encoder, text=tower, mask_ratio=a.mask_ratio),
        augment={"views": dict(count=1, size=224, scale=(0.5, 1.0), flip=0.0)},
        optim=dict(name="adamw", b2=0.95, lr=dict(kind="cosine", peak=1.024e-3, warmup_steps=800), weight_decay=0.2),
    )
