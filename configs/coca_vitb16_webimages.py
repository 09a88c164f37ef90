"""CoCa-Base (Yu et al. 2022, table 1): 12 layers each of image, text and multimodal decoder; patches of 18 of 288 pixels, batch 65,536.

python -m ssljax.train --config configs/coca_vitb16_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/coca

Paper: 82.6 % zero-shot on ImageNet-1k, of JFT-3B and ALIGN's pairs. There Adafactor; here AdamW of the same rate and decay.
With CLIP's tokenizer: --config.data.tokenizer=clip:PATH --config.method.text.vocab_size=49408 --config.method.decoder.vocab_size=49408
--config.method.start=49406.
Plan: v5p:8x8x8, data=512: 26.5 of 95 GiB a chip, at most 696,588 images/s (HBM).
"""

from ssljax import config as c
from ssljax import webimages
from ssljax.models import text, vit


def get_config(arg=""):
    a = c.parse(arg, batch=65536, examples=32_768_000_000)
    queries = dict(pool="queries", queries=257, query_width=768, query_heads=12, last_norm="pooled", class_token=False, out=768)
    encoder = vit.size("B/16", image_size=288, patch_size=18, dtype="bfloat16", remat="dots", **queries)
    sizes = dict(vocab_size=64_000, dtype="bfloat16", remat="dots")
    tower = text.size("B", length=64, causal=True, class_token=True, last_norm="pooled", out=768, **sizes)
    decoder = dict(name="caption_decoder", width=768, depth=12, heads=12, mlp_dim=3072, cross_mlp_dim=3072, **sizes)
    return webimages.make(
        a,
        method=dict(name="coca", encoder=encoder, text=tower, decoder=decoder),
        data=dict(image_size=288, tokenizer="words:64000"),
        augment={"views": dict(count=1, size=288, scale=(0.5, 1.0), flip=0.0)},
        optim=dict(name="adamw", b2=0.98, clip_norm=1.0, lr=dict(kind="cosine", peak=8e-4, warmup_steps=10_000), weight_decay=0.01),
    )
