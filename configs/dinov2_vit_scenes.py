"""DINOv2, with the Gram anchoring of DINOv3, on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/dinov2_vit_scenes.py --workdir runs/dinov2

Expect (label: photograph): kNN or linear probe >= 0.05 above the same encoder at random in 10 minutes, teacher entropy far from 0.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=440)
    head = dict(name="dino_head", hidden=128, bottleneck=64, out=256, layers=3)
    return embedded.make(
        a,
        method=dict(
            name="dinov2",
            gram_weight=1.0,
            gram_start=a.steps // 2,
            gram_every=100,
            teacher_temperature=0.05,
            warmup_teacher_epochs=2.0,
            ema=0.99,
            freeze_last_layer_steps=50,
            encoder=dict(name="vit", image_size=32, patch_size=4, width=64, depth=3, heads=4, mlp_dim=128, mask_token=True),
            head=head,
            patch_head=head,
        ),
        views=dict(scale=(0.4, 1.0)),
        crops=dict(count=2, size=16, scale=(0.1, 0.4), **embedded.COLOUR),
        optim=dict(lr=dict(kind="cosine", peak=2e-3, warmup_steps=50), clip_norm=3.0, weight_decay=0.04),
    )
