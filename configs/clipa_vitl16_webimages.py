"""CLIPA, ViT-L/16: small pictures and short texts (Li et al. 2023, arXiv 2305.07017, section 4), then the full ones for a little while:
`:side=224,length=32,examples=128_000_000` with --config.init.checkpoint=gs://BUCKET/clipa.

python -m ssljax.train --config configs/clipa_vitl16_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/clipa

Paper: 69.3 % zero-shot on ImageNet-1k in four days of eight A100s, ViT-L/16 on LAION-400M.
Plan: v5e:16x16, data=256: 11.3 of 16 GiB a chip, at most 423,586 images/s (HBM).
"""

from ssljax import config as c
from ssljax import webimages
from ssljax.models import vit


def get_config(arg=""):
    a = c.parse(arg, batch=16384, examples=2_560_000_000, side=112, length=16)
    side = a.side
    encoder = vit.size("L/16", image_size=side, position="sincos_mae", pool="gap", class_token=False, out=768, dtype="bfloat16")
    text = webimages.TEXT | dict(width=768, heads=12, mlp_dim=3072, length=a.length, causal=True, pool="eot", out=768)
    return webimages.make(
        a,
        method=dict(name="clip", encoder=encoder, text=text),
        data=dict(image_size=side),
        augment={"views": dict(count=1, size=side, scale=(0.4, 1.0), flip=0.0)},
    )
