"""STAIR, ViT-B/16 (Chen et al. 2023, section 4.1).

python -m ssljax.train --config configs/stair_vitb16_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/stair

Paper: 4.9 points of R@1 above CLIP on COCO, text to image, and 4.3 image to text, of the same 1.1 B pairs.
Plan: v5e:16x16, data=256: 11.0 of 16 GiB a chip, at most 308,587 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax import webimages


def get_config(arg=""):
    a = c.parse(arg, batch=16384, examples=10_000_000_000)
    encoder = webimages.VIT_B16 | dict()
    text = webimages.TEXT | dict(pool="gap")
    return webimages.make(a, method=dict(name="stair", encoder=encoder, text=text, vocabulary=32_000))
