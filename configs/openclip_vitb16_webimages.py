"""OpenCLIP's recipe for ViT-B/16 (Cherti et al. 2022; Gadre et al. 2023): batch 90,112, 13 B pairs seen, exact GELU.

python -m ssljax.train --config configs/openclip_vitb16_webimages.py --config.data.source='tar:PATH/{0000..1000}.tar' --workdir gs://BUCKET/openclip

Paper: 73.5 % zero-shot on ImageNet-1k of DataComp-1B (datacomp_xl_s13b_b90k).
Plan: v5p:8x8x8, data=512: 12.4 of 95 GiB a chip, at most 1,451,649 images/s (HBM).
"""

from ssljax import config as c
from ssljax import webimages


def get_config(arg=""):
    a = c.parse(arg, batch=90_112, examples=12_800_000_000)
    encoder = webimages.VIT_B16 | dict(class_position=True, patch_bias=False, first_norm=True, last_norm="pooled", norm_eps=1e-5, out=512)
    text = webimages.TEXT | dict(causal=True, pool="eot", norm_eps=1e-5, out=512)
    return webimages.make(
        a,
        method=dict(name="clip", encoder=encoder, text=text),
        augment={"views": dict(count=1, size=224, scale=(0.9, 1.0), flip=0.0)},
        optim=webimages.ADAMW | dict(lr=dict(kind="cosine", peak=1e-3, warmup_steps=10_000)),
    )
