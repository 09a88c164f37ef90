"""I-JEPA on ImageNet-1k, ViT-H/14, 300 epochs (Assran et al. 2023, appendix A).

python -m ssljax.train --config configs/ijepa_vith14_imagenet.py --workdir gs://BUCKET/ijepa

Paper: 79.3 % linear, ViT-H/14 at 224, 300 epochs.
Plan: v5e:8x8, data=64: 13.8 of 16 GiB a chip, at most 18,007 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import vit


def get_config(arg=""):
    a = c.parse(arg, batch=2048, epochs=300)
    encoder = vit.size("H/14", class_token=False, pool="gap", position="sincos_mae", dtype="bfloat16", remat="full")
    predictor = dict(name="predictor", width=384, depth=12, heads=16, mlp_dim=1536, grid=(16, 16), dtype="bfloat16", remat="full")
    return imagenet.make(
        a,
        method=dict(name="ijepa", encoder=encoder, predictor=predictor, targets=4, context=0.25, ema=0.996),
        augment={"views": dict(count=1, size=224, scale=(0.3, 1.0), flip=0.0)},
        optim=dict(
            name="adamw", lr=dict(kind="cosine", peak=1e-3, warmup_steps=imagenet.steps(a, 40), warmup_start=2e-4, final=1e-6),
            weight_decay=dict(kind="cosine", peak=0.04, final=0.4),
        ),
    )  # fmt: skip
