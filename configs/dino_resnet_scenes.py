"""DINO with multi-crop on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/dino_resnet_scenes.py --workdir runs/dino

Expect (label: photograph): kNN >= 0.05 above the same encoder at random within 5 minutes, teacher entropy neither 0 nor maximal.
"""

from ssljax import config as c

FAMILY = "self-distillation"
LEARNING = ("data=photo",)

# Any hue, often grey: otherwise the digit's colour is enough, and the photograph is never looked at.
COLOUR = dict(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5, grey=0.3)


def get_config(arg=""):
    a = c.parse(arg, data="photo", batch=128, steps=500)
    return c.make(
        steps=a.steps,
        batch=a.batch,
        method=dict(
            name="dino",
            teacher_temperature=0.04,
            warmup_teacher_temperature=0.04,
            ema=0.99,
            freeze_last_layer_steps=50,
            encoder=dict(name="resnet", stages=(1, 1, 1), bottleneck=False, width=16, stem="small"),
            head=dict(name="dino_head", hidden=128, bottleneck=64, out=256, layers=3),
        ),
        data=dict(
            source=f"scenes/{a.data}", label="photograph" if a.data == "photo" else "digit", image_size=32, crop="device",
            mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), features="n=64,height=32,width=32,classes=14",
        ),
        augment={
            "views": dict(count=2, size=32, scale=(0.4, 1.0), **COLOUR),
            "crops": dict(count=4, size=16, scale=(0.1, 0.4), **COLOUR),
        },
        optim=dict(
            name="adamw", clip_norm=3.0, lr=dict(kind="cosine", peak=3e-3, warmup_steps=50, final=1e-5),
            weight_decay=dict(kind="cosine", peak=0.04, final=0.4),
        ),
        evals=dict(every=250),
        checkpoint=dict(every=250),
    )  # fmt: skip
