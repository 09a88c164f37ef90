"""DINO with multi-crop on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/dino_resnet_scenes.py --workdir runs/dino

Expect (label: photograph): kNN >= 0.05 above the same encoder at random within 5 minutes, teacher entropy neither 0 nor maximal.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=500)
    return embedded.make(
        a,
        method=dict(
            name="dino",
            teacher_temperature=0.04,
            warmup_teacher_temperature=0.04,
            ema=0.99,
            freeze_last_layer_steps=50,
            encoder=embedded.RESNET,
            head=dict(name="dino_head", hidden=128, bottleneck=64, out=256, layers=3),
        ),
        views=dict(scale=(0.4, 1.0)),
        crops=dict(count=4, size=16, scale=(0.1, 0.4), **embedded.COLOUR),
        optim=dict(
            clip_norm=3.0,
            lr=dict(kind="cosine", peak=3e-3, warmup_steps=50, final=1e-5),
            weight_decay=dict(kind="cosine", peak=0.04, final=0.4),
            b2=0.999,
        ),
    )
