"""MOFI, ViT-B/16, contrast and entities at once (Wu et al. 2023, section 4.1); the label is the entity.

python -m ssljax.train --config configs/mofi_vitb16_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/mofi

Paper: 86.7 mAP on GPR1200, where CLIP has 72.2, of its largest model on I2E's 1.1 B pictures.
Plan: v5e:16x16, data=16,fsdp=16: 9.1 of 16 GiB a chip, at most 359,867 images/s (HBM).
"""

from ssljax import config as c
from ssljax import webimages


def get_config(arg=""):
    a = c.parse(arg, batch=32768, examples=20_000_000_000)
    encoder = webimages.VIT_B16 | dict(out=512)
    text = webimages.TEXT | dict(causal=True, pool="eot", out=512)
    method = dict(name="mofi", encoder=encoder, text=text, entities=2_000_000)
    return webimages.make(a, method=method, mesh=dict(fsdp=16))  # whole on every chip, the entities' gradient would be 8 GiB sent a step
