"""MoCo v3 on ImageNet-1k, the paper's setting (Chen et al. 2021, section 4): ViT-S/16, batch 4096, AdamW, 300 epochs.

python -m ssljax.train --config configs/mocov3_vits16_imagenet.py --workdir gs://BUCKET/mocov3 --distributed

Paper: linear probe 73.2 % with ViT-S/16 and 76.7 with ViT-B/16 (`:size=B`) after 300 epochs.
Plan: v5e:8x8, data=64: 4.7 of 16 GiB a chip, at most 134,298 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import vit


def get_config(arg=""):
    a = c.parse(arg, batch=4096, epochs=300, size="S")
    head = dict(name="mlp", hidden=4096, out=256, last_norm=True, last_affine="none", dtype="bfloat16")
    return imagenet.make(
        a,
        method=dict(
            # 12 heads in both sizes; positions are fixed.
            name="mocov3", encoder=vit.size(f"{a.size}/16", heads=12, position="sincos_moco_v3", dtype="bfloat16"),
            projector=head | dict(layers=3), predictor=head | dict(layers=2), temperature=0.2, ema=0.99,
        ),
        augment=recipes.make("byol"),
        optim=dict(
            name="adamw", weight_decay=0.1, lr=dict(kind="cosine", peak=1.5e-4 * a.batch / 256, warmup_steps=imagenet.steps(a, 40)),
        ),
        groups=((r"^encoder/patch_embed/", dict(lr=0.0)),),  # a random patch projection: section 4.2
    )  # fmt: skip
