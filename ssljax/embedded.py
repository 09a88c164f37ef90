"""What the small configs on the embedded scenes share: the data, the views that suit it, an encoder that trains in minutes on two cores.

def get_config(arg=""):
    a = embedded.parse(arg, steps={"plain": 600, "photo": 900})
    return embedded.make(a, method=dict(name="simclr", encoder=embedded.RESNET, projector=embedded.MLP))
"""

from ssljax import config as c
from ssljax import fields
from ssljax.augment import Group

RESNET = dict(name="resnet", stages=(1, 1, 1), bottleneck=False, width=16, stem="small")  # 77 k parameters, features of 64
VIT = dict(name="vit", image_size=32, patch_size=4, width=96, depth=4, heads=4, mlp_dim=192)
TEXT = dict(name="text", vocab_size=2048, length=12, width=64, depth=2, heads=4, mlp_dim=128, pool="gap")
MLP = dict(name="mlp", hidden=128, out=64)

# Any hue, often grey: otherwise the digit's colour is enough to tell pictures apart, and the photograph is never looked at.
COLOUR = dict(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5, grey=0.3)
VIEWS = {
    # White digits on black: there is no colour, and a crop below 0.4 loses the digit.
    "plain": dict(count=2, size=32, scale=(0.4, 1.0), flip=0.0, brightness=0.4, contrast=0.4),
    "photo": dict(count=2, size=32, scale=(0.25, 1.0), **COLOUR),
}
LABEL = {"plain": "digit", "photo": "photograph"}
BATCH = {"plain": 256, "photo": 128}


def parse(arg, *, steps, data="photo", batch=None, **defaults):
    """The argument of a small config: data=plain or photo, batch, steps and `defaults`. steps, batch: {data: number}, or a number."""
    given = next((item.partition("=")[2] for item in arg.split(",") if item.startswith("data=")), data)
    pick = lambda x: x.get(given, next(iter(x.values()))) if isinstance(x, dict) else x  # noqa: E731
    return c.parse(arg, data=data, batch=pick(batch or BATCH), steps=pick(steps), **defaults)


def make(a, *, method, views=None, crops=None, more=None, optim=None, data=None, evals=None, checkpoint=None, **rest):
    """The ConfigDict of a run on the scenes of `a.data`. views: fields of the group that take the place of VIEWS'; crops: a second group;
    more: further ones {name: fields that take the place of the views' own}; optim: fields that take the place of AdamW's below; data,
    evals, checkpoint: of their sections."""
    groups = {"views": VIEWS.get(a.data, VIEWS["photo"]) | (views or {})} | ({"crops": crops} if crops else {})
    groups |= {name: groups["views"] | group for name, group in (more or {}).items()}
    adamw = dict(name="adamw", lr=dict(kind="cosine", peak=3e-3, warmup_steps=20), weight_decay=1e-4, b2=0.99)
    if (optim or {}).get("name", "adamw") != "adamw":
        adamw = {key: adamw[key] for key in ("lr", "weight_decay")}
    half = max(a.steps // 2, 1)
    return c.make(
        steps=a.steps,
        batch=a.batch,
        method=method,
        data=dict(
            source=f"scenes/{a.data}", label=LABEL.get(a.data, "photograph"), image_size=32, crop="device",
            mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), features="n=64,height=32,width=32,classes=14",
        ) | (data or {}),
        augment=groups,
        optim=adamw | (optim or {}),
        evals=dict(every=half) | (evals or {}),
        checkpoint=dict(every=half) | (checkpoint or {}),
        **rest,
    )  # fmt: skip


def make_pairs(a, *, augmented=None, **rest):
    """The same for pictures and captions: one lightly cropped view, words as tokens; augmented: a second group of views."""
    views = dict(count=1, scale=(0.7, 1.0), flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.0)
    optim = dict(lr=dict(kind="cosine", peak=3e-3, warmup_steps=20), b2=0.95, clip_norm=1.0) | rest.pop("optim", {})
    data = dict(caption="caption", tokenizer="words:2048") | rest.pop("data", {})
    config = make(a, views=views, optim=optim, data=data, evals=dict(names=("knn", "zeroshot")) | rest.pop("evals", {}), **rest)
    if augmented:
        config.augment.augmented = fields.expand(Group, augmented, "augment.augmented")
    return config
