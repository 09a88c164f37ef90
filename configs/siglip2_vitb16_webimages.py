"""SigLIP 2, ViT-B/16 (Tschannen et al. 2025, section 2 and table 1).

python -m ssljax.train --config configs/siglip2_vitb16_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/siglip2

Paper: 78.2 % zero-shot on ImageNet-1k at 224, 40 B examples of WebLI.
Plan: v5p:8x8x8, data=512: 14.3 of 95 GiB a chip, at most 440,437 images/s (HBM).
"""

from ssljax import config as c
from ssljax import webimages


def get_config(arg=""):
    a = c.parse(arg, batch=32768, examples=40_000_000_000)
    encoder = webimages.VIT_B16 | dict(class_token=False, pool="map", mask_token=True, activation="gelu_tanh")
    text = webimages.TEXT | dict(length=64, pool="last", out=768, out_bias=True)
    decoder = webimages.TEXT | dict(cross=True, memory_width=768, depth=6, length=64, pool="last")
    return webimages.make(
        a,
        method=dict(name="siglip2", encoder=encoder, text=text, decoder=decoder),
        augment={"crops": dict(count=8, size=96, scale=(0.05, 0.4))},
    )
