"""SigLIP, the paper's base setting (Zhai et al. 2023, section 4): ViT-B/16 at 224, text tower B, batch 16,384 (`:batch=32768`).

python -m ssljax.train --config configs/siglip_vitb16_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/siglip

Paper: 9 B examples of WebLI reach 73.4 % zero-shot on ImageNet-1k with a batch of 32k. WebLI is not public: name a source with captions.
Plan: v5e:16x16, data=256: 8.1 of 16 GiB a chip, at most 360,360 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax.models import text, vit


def get_config(arg=""):
    a = c.parse(arg, batch=16384, examples=9_000_000_000)
    return c.make(
        steps=a.examples // a.batch,
        batch=a.batch,
        method=dict(
            name="siglip",
            init_temperature=10.0,
            init_bias=-10.0,
            encoder=vit.size("B/16", pool="map", class_token=False, activation="gelu_tanh", dtype="bfloat16", remat="dots"),
            text=text.size(
                "B", vocab_size=32_000, length=64, out=768, out_bias=True, activation="gelu_tanh", dtype="bfloat16", remat="dots"
            ),
        ),
        data=dict(
            source="tfds:coco_captions", caption="caption", tokenizer="words:32000", image_size=224,
            mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), features="n=64,height=200-400,width=200-400,words=3-12",
        ),
        augment={"views": dict(count=1, size=224, scale=(0.9, 1.0), ratio=(0.9, 1.1), flip=0.0)},
        optim=dict(
            name="adamw", b1=0.9, b2=0.95, clip_norm=1.0, lr=dict(kind="cosine", peak=1e-3, warmup_steps=20_000), weight_decay=1e-4
        ),
        log=dict(every=100),
        checkpoint=dict(every=5000),
    )  # fmt: skip
