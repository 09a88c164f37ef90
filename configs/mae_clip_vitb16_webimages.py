"""MAE-CLIP, ViT-B/16 (Weers et al. 2023, section 3.3).

python -m ssljax.train --config configs/mae_clip_vitb16_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/mae_clip

Paper: better than CLIP on 11.3 M pairs, no better on 1.4 B.
Plan: v5e:16x16, data=256: 12.0 of 16 GiB a chip, at most 274,664 images/s (HBM).
"""

from ssljax import config as c
from ssljax import webimages


def get_config(arg=""):
    a = c.parse(arg, batch=16384, examples=400_000_000)
    encoder = webimages.VIT_B16 | dict(position="sincos_mae", out=512, pool="gap")
    text = webimages.TEXT | dict(causal=True, pool="eot", out=512)
    return webimages.make(a, method=dict(name="mae_clip", encoder=encoder, text=text))
