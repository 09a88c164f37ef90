"""CLIP, the paper's ViT-B/32 (Radford et al. 2021, tables 18 to 20): batch 32,768, 32 epochs of 400 M pairs.

python -m ssljax.train --config configs/clip_vitb32_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/clip

Paper: 63.2 % zero-shot on ImageNet-1k. Its 400 M pairs are not public: name a source with captions, and `:examples=` seen in all.
The tokenizer is CLIP's where its merges file is at hand: --config.data.tokenizer=clip:PATH --config.method.text.vocab_size=49408.
Plan: v5e:16x16, data=256: 5.8 of 16 GiB a chip, at most 1,137,909 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax.models import text, vit


def get_config(arg=""):
    a = c.parse(arg, batch=32768, examples=12_800_000_000)
    shared = dict(activation="quick_gelu", norm_eps=1e-5, dtype="bfloat16", remat="dots", out=512)
    encoder = dict(class_position=True, patch_bias=False, first_norm=True, last_norm="pooled", **shared)
    return c.make(
        steps=a.examples // a.batch,
        batch=a.batch,
        method=dict(
            name="clip",
            encoder=vit.size("B/32", **encoder),
            text=text.size("B", width=512, heads=8, mlp_dim=2048, vocab_size=32_000, length=77, causal=True, pool="eot", **shared),
        ),
        data=dict(
            source="tfds:coco_captions", caption="caption", tokenizer="words:32000", image_size=224,
            mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),
            features="n=64,height=200-400,width=200-400,words=3-12",
        ),
        augment={"views": dict(count=1, size=224, scale=(0.9, 1.0), flip=0.0)},
        optim=dict(name="adamw", b1=0.9, b2=0.98, eps=1e-6, lr=dict(kind="cosine", peak=5e-4, warmup_steps=2000), weight_decay=0.2),
        log=dict(every=100),
        checkpoint=dict(every=5000),
    )  # fmt: skip
