"""CapPa, ViT-B/16 (Tschannen et al. 2023, section 4.1).

python -m ssljax.train --config configs/cappa_vitb16_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/cappa

Paper: on a par with CLIP of the same data and compute on classification, above it on captioning and questions.
Plan: v5e:16x16, data=256: 4.5 of 16 GiB a chip, at most 397,443 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax import webimages


def get_config(arg=""):
    a = c.parse(arg, batch=8192, examples=9_000_000_000)
    encoder = webimages.VIT_B16 | dict(class_token=False, pool="map")
    text = webimages.TEXT | dict(cross=True, memory_width=768, depth=6, length=64, pool="last")
    return webimages.make(a, method=dict(name="cappa", encoder=encoder, text=text, parallel=0.75))
