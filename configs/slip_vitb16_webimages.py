"""SLIP, ViT-B/16 (Mu et al. 2021, section 4): batch 4,096, 25 epochs of 15 M pairs.

python -m ssljax.train --config configs/slip_vitb16_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/slip

Paper: 42.8 % zero-shot on ImageNet-1k after 25 epochs of YFCC15M, where CLIP has 37.6.
Plan: v5e:8x8, data=64: 13.7 of 16 GiB a chip, at most 37,514 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax import webimages


def get_config(arg=""):
    a = c.parse(arg, batch=4096, examples=375_000_000)
    encoder, text = webimages.VIT_B16 | dict(out=512), webimages.TEXT | dict(causal=True, pool="eot", out=512)
    return webimages.make(
        a,
        method=dict(name="slip", encoder=encoder, text=text),
        augment={"augmented": webimages.AUGMENTED},
        optim=dict(name="adamw", b2=0.98, eps=1e-8, lr=dict(kind="cosine", peak=3e-3, warmup_steps=3660), weight_decay=0.1),
    )
