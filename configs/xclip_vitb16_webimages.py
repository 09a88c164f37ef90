"""xCLIP, ViT-B/16 (Zhou et al. 2022, section 4.1); nCLIP with --config.method.clip_weight=0.

python -m ssljax.train --config configs/xclip_vitb16_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/xclip

Paper: above CLIP's zero-shot on ImageNet-1k at the same 35 M pairs; nCLIP below it, with the better linear probe.
Plan: v5e:8x8, data=64: 11.3 of 16 GiB a chip, at most 86,947 images/s (HBM).
"""

from ssljax import config as c
from ssljax import webimages


def get_config(arg=""):
    a = c.parse(arg, batch=4096, examples=1_120_000_000)
    encoder = webimages.VIT_B16 | dict(out=512)
    text = webimages.TEXT | dict(causal=True, pool="eot", out=512)
    return webimages.make(a, method=dict(name="nclip", encoder=encoder, text=text, clip_weight=1.0))
