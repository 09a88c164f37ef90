"""MSN on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/msn_vit_scenes.py --workdir runs/msn

Expect (label: photograph): kNN or linear probe >= 0.05 above the same encoder at random in 10 minutes, teacher entropy far from 0.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=500)
    return embedded.make(
        a,
        method=dict(
            name="msn",
            prototypes=128,
            mask_ratio=0.3,
            ema=0.99,
            encoder=dict(name="vit", image_size=32, patch_size=4, width=64, depth=3, heads=4, mlp_dim=128),
            projector=dict(name="mlp", hidden=256, out=64, layers=3),
        ),
        crops=dict(count=3, size=16, scale=(0.1, 0.4), **embedded.COLOUR),
        optim=dict(lr=dict(kind="cosine", peak=2e-3, warmup_steps=50), clip_norm=3.0, weight_decay=0.04),
    )
