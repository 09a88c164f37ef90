"""FILIP, ViT-B/32 (Yao et al. 2021, section 4.1 and appendix A.3).

python -m ssljax.train --config configs/filip_vitb32_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/filip

Paper: 68.8 % zero-shot on ImageNet-1k, of FILIP-base on 340 M pairs.
Plan: v5e:16x16, data=256: 3.5 of 16 GiB a chip, at most 408,098 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax import webimages


def get_config(arg=""):
    a = c.parse(arg, batch=10240, examples=10_000_000_000)
    encoder = webimages.VIT_B16 | dict(patch_size=32)
    text = webimages.TEXT | dict(causal=False, pool="gap")
    return webimages.make(a, method=dict(name="filip", encoder=encoder, text=text, width=256, products="bfloat16"))
