"""MaskFeat on ImageNet-1k, ViT-B/16, 1600 epochs (Wei et al. 2021, appendix B).

python -m ssljax.train --config configs/maskfeat_vitb16_imagenet.py --workdir gs://BUCKET/maskfeat

Paper: 84.0 % fine-tuned, ViT-B at 224.
Plan: v5e:8x8, data=64: 3.2 of 16 GiB a chip, at most 118,988 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import vit


def get_config(arg=""):
    a = c.parse(arg, batch=2048, epochs=1600)
    encoder = vit.size("B/16", mask_token=True, pool="gap", dtype="bfloat16", remat="dots")
    return imagenet.make(
        a,
        method=dict(name="maskfeat", encoder=encoder, mask_ratio=0.4, cell=8),
        augment={"views": dict(count=1, size=224, scale=(0.5, 1.0))},
        optim=dict(
            name="adamw", b1=0.9, b2=0.999, clip_norm=0.02, weight_decay=0.05,
            lr=dict(kind="cosine", peak=2e-4 * a.batch / 256, warmup_steps=imagenet.steps(a, 30), final=1e-6),
        ),
    )  # fmt: skip
