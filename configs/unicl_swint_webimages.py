"""UniCL, Swin-T (Yang et al. 2022, section 4.1): labelled pictures and pairs in one batch of 4,096.

python -m ssljax.train --config configs/unicl_swint_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/unicl

Paper: 40.5 % zero-shot on ImageNet-1k of ImageNet-21k and YFCC-14M, 30.1 % of the pairs alone. A pair without a label stands alone.
Plan: v5e:8x8, data=64: 7.5 of 16 GiB a chip, at most 92,772 images/s (HBM).
"""

from ssljax import config as c
from ssljax import webimages
from ssljax.models import swin


def get_config(arg=""):
    a = c.parse(arg, batch=4096, examples=450_000_000)
    encoder = swin.size("T", drop_path=0.2, dtype="bfloat16", out=512)
    text = webimages.TEXT | dict(causal=True, pool="eot", out=512)
    return webimages.make(
        a,
        method=dict(name="unicl", encoder=encoder, text=text),
        optim=dict(name="adamw", clip_norm=5.0, lr=dict(kind="cosine", peak=1e-3, warmup_steps=5000), weight_decay=0.05),
    )
