"""iGPT-S on ImageNet-1k at 32 x 32, 1 M steps of 128 (Chen et al. 2020, section 3.3).

python -m ssljax.train --config configs/igpt_s_imagenet.py --workdir gs://BUCKET/igpt

Paper: 41.9 % linear on ImageNet at 32 x 32 of iGPT-S's best layer.
Plan: v5e:4x4, data=16: 1.8 of 16 GiB a chip, at most 3,938 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax import imagenet


def get_config(arg=""):
    a = c.parse(arg, batch=128, epochs=100)
    encoder = dict(name="text", width=512, depth=24, heads=8, mlp_dim=2048, length=1024, vocab_size=513, causal=True, pool="gap")
    return imagenet.make(
        a,
        method=dict(name="igpt", encoder=encoder | dict(dtype="bfloat16", remat="full"), side=32, levels=8),
        augment={"views": dict(count=1, size=32, scale=(0.5, 1.0))},
        data=dict(image_size=32),
        optim=dict(name="adamw", b1=0.9, b2=0.95, weight_decay=0.01, lr=dict(kind="cosine", peak=3e-3, warmup_steps=10_000)),
    )
