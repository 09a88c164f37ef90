"""SimCLR on the embedded scenes: minutes on two CPU cores.

python -m ssljax.train --config configs/simclr_resnet_scenes.py --workdir runs/simclr
python -m ssljax.train --config configs/simclr_resnet_scenes.py:data=photo --workdir runs/simclr_photo

Expect on scenes/plain (label: digit): linear probe >= 0.60, raw pixels and a random encoder under 0.30.
Expect on scenes/photo (label: photograph): kNN >= 0.52 and >= 0.12 above the same encoder at random.
"""

from ssljax import config as c

FAMILY = "contrastive"
LEARNING = ("data=plain", "data=photo")

VIEWS = {
    # White digits on black: there is no colour, and a crop below 0.4 loses the digit.
    "plain": dict(count=2, size=32, scale=(0.4, 1.0), flip=0.0, brightness=0.4, contrast=0.4),
    # Any hue, often grey: otherwise the digit's colour is enough to tell pictures apart, and the photograph is never looked at.
    "photo": dict(count=2, size=32, scale=(0.25, 1.0), brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5, grey=0.3),
}
SCENES = {
    "plain": dict(batch=256, steps=600, label="digit"),
    "photo": dict(batch=128, steps=900, label="photograph"),
}


def get_config(arg=""):
    data = "photo" if "data=photo" in arg else "plain"
    a = c.parse(arg, data="plain", batch=SCENES[data]["batch"], steps=SCENES[data]["steps"])
    return c.make(
        steps=a.steps,
        batch=a.batch,
        method=dict(
            name="simclr",
            temperature=0.2,
            encoder=dict(name="resnet", stages=(1, 1, 1), bottleneck=False, width=16, stem="small"),
            projector=dict(name="mlp", hidden=128, out=64),
        ),
        data=dict(
            source=f"scenes/{a.data}", label=SCENES[a.data]["label"], image_size=32, crop="device",
            mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), features="n=64,height=32,width=32,classes=10",
        ),
        augment={"views": VIEWS[a.data]},
        optim=dict(name="adamw", lr=dict(kind="cosine", peak=3e-3, warmup_steps=20), weight_decay=1e-4, b2=0.99),
        evals=dict(every=300),
        checkpoint=dict(every=300),
    )  # fmt: skip
