"""DeCLIP, ViT-B/32 (Li et al. 2021, section 4.1).

python -m ssljax.train --config configs/declip_vitb32_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/declip

Paper: 66.2 % zero-shot on ImageNet-1k, on 88 M pairs.
Plan: v5e:16x16, data=256: 7.4 of 16 GiB a chip, at most 367,839 images/s (HBM).
"""

from ssljax import config as c
from ssljax import webimages


def get_config(arg=""):
    a = c.parse(arg, batch=10240, examples=2_800_000_000)
    encoder = webimages.VIT_B16 | dict(patch_size=32, out=512)
    text = webimages.TEXT | dict(pool="gap", out=512)
    return webimages.make(a, method=dict(name="declip", encoder=encoder, text=text), augment={"augmented": webimages.AUGMENTED})
