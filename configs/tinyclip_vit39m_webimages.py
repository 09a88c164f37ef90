"""TinyCLIP's distillation of a ViT-B/16 into half its width (Wu et al. 2023, section 4): batch 4,096, affinity mimicking only.

python -m ssljax.train --config configs/tinyclip_vit39m_webimages.py --config.method.teacher=DIR --workdir gs://BUCKET/tiny

Paper: 63.5 % zero-shot on ImageNet-1k of ViT-39M/16 on YFCC15M, weights inherited from the teacher; here random ones.
`teacher` is a run of clip or siglip, or what ssljax.convert makes of public weights, and reads with the same tokenizer.
Plan: v5e:8x8, data=64: 3.9 of 16 GiB a chip, at most 165,357 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax import webimages


def get_config(arg=""):
    a = c.parse(arg, batch=4096, examples=375_000_000)
    encoder = webimages.VIT_B16 | dict(width=512, heads=8, mlp_dim=2048, out=512)
    text = webimages.TEXT | dict(depth=6, causal=True, pool="eot", out=512)
    method = dict(name="distill_clip", encoder=encoder, text=text)
    return webimages.make(a, method=method, optim=webimages.ADAMW | dict(lr=dict(kind="cosine", peak=1e-4, warmup_steps=2000)))
