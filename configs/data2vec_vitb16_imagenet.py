"""data2vec on ImageNet-1k, ViT-B/16, 800 epochs (Baevski et al. 2022, section 4.1).

python -m ssljax.train --config configs/data2vec_vitb16_imagenet.py --workdir gs://BUCKET/data2vec

Paper: 84.2 % fine-tuned, ViT-B at 224.
Plan: v5e:8x8, data=64: 3.8 of 16 GiB a chip, at most 88,988 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import vit


def get_config(arg=""):
    a = c.parse(arg, batch=2048, epochs=800)
    encoder = vit.size(
        "B/16", mask_token=True, pool="gap", position="relative_shared", layer_scale=1e-4, drop_path=0.25, dtype="bfloat16", remat="dots"
    )
    method = dict(
        name="data2vec", encoder=encoder, mask_ratio=0.6, top_layers=6, mean_norms=("layer",), beta=2.0, ema=0.9998, ema_final=0.9998
    )
    return imagenet.make(
        a,
        method=method,
        augment={"views": dict(count=1, size=224, scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, jitter=1.0)},
        optim=dict(
            name="adamw", b1=0.9, b2=0.98, clip_norm=3.0, weight_decay=0.05,
            lr=dict(kind="cosine", peak=2e-3, warmup_steps=imagenet.steps(a, 40), final=1e-6),
        ),
    )  # fmt: skip
