"""SigLIP on scenes/photo: pictures and their captions, minutes on two CPU cores.

python -m ssljax.train --config configs/siglip_resnet_scenes.py --workdir runs/siglip

Expect after 300 steps: zero-shot colour >= 0.85, photograph >= 0.45; retrieval R@1 among 200 >= 0.15 both ways.
"""

from ssljax import config as c

FAMILY = "image-text"
LEARNING = ("",)


def get_config(arg=""):
    a = c.parse(arg, batch=256, steps=300)
    return c.make(
        steps=a.steps,
        batch=a.batch,
        method=dict(
            name="siglip",
            encoder=dict(name="resnet", stages=(1, 1, 1), bottleneck=False, width=16, stem="small", out=64),
            text=dict(name="text", vocab_size=2048, length=12, width=64, depth=2, heads=4, mlp_dim=128, pool="gap", out=64),
        ),
        data=dict(
            source="scenes/photo", label="photograph", caption="caption", tokenizer="words:2048", image_size=32,
            crop="device", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), features="n=64,height=32,width=32,classes=14",
        ),
        augment={"views": dict(count=1, size=32, scale=(0.7, 1.0), flip=0.0)},
        optim=dict(name="adamw", lr=dict(kind="cosine", peak=3e-3, warmup_steps=20), weight_decay=1e-4, b2=0.95, clip_norm=1.0),
        evals=dict(every=100, names=("knn", "zeroshot")),
        checkpoint=dict(every=100),
    )  # fmt: skip
