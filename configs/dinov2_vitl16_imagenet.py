"""DINOv2 on ImageNet-1k, the authors' short run (Oquab et al. 2023; their vitl16_short): ViT-L/16, batch 2048, 100 epochs.

python -m ssljax.train --config configs/dinov2_vitl16_imagenet.py --workdir gs://BUCKET/dinov2 --distributed

Paper: kNN 81.6 %, linear probe 82.9 with four machines of eight A100s; `:gram=true` adds DINOv3's anchoring,
`:size=L/14` the patches of the long runs.
Plan: v5e:16x16, data=256: 14.5 of 16 GiB a chip, at most 32,164 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import vit


def get_config(arg=""):
    a = c.parse(arg, batch=2048, epochs=100, gram=False, size="L/16")
    groups = recipes.make("dino", crops=8, scale=(0.32, 1.0))
    groups["crops"].update(scale=(0.05, 0.32), size=98 if a.size.endswith("/14") else 96)
    head = dict(name="dino_head", hidden=2048, bottleneck=256, out=65536, layers=3, dtype="bfloat16")
    return imagenet.make(
        a,
        method=dict(
            name="dinov2",
            koleo_weight=0.1,
            gram_weight=2.0 if a.gram else 0.0,
            gram_start=imagenet.steps(a, 0.8 * a.epochs),
            gram_every=10_000,
            mask_ratio=(0.1, 0.5),
            mask_chance=0.5,
            teacher_temperature=0.07,
            warmup_teacher_temperature=0.04,
            warmup_teacher_epochs=30.0,
            ema=0.992,
            freeze_last_layer_steps=imagenet.steps(a, 1),
            encoder=vit.size(a.size, mask_token=True, layer_scale=1e-5, drop_path=0.3, remat="dots", dtype="bfloat16"),
            head=head,
            patch_head=head,
        ),
        augment=groups,
        optim=dict(
            name="adamw",
            clip_norm=3.0,
            layer_decay=0.9,
            lr=dict(kind="cosine", peak=4e-3 * (a.batch / 1024) ** 0.5, final=1e-6, warmup_steps=imagenet.steps(a, 10)),
            weight_decay=dict(kind="cosine", peak=0.04, final=0.4),
        ),
        groups=((r"/patch_embed/", dict(lr=0.2)),),
    )
