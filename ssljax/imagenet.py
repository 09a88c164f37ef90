"""What the configs at the papers' scale share: ImageNet-1k, and how often a run of it logs, saves and judges.

def get_config(arg=""):
    a = c.parse(arg, batch=4096, epochs=1000)
    return imagenet.make(a, method=..., augment=recipes.make("byol"), optim=dict(name="lars", lr=..., weight_decay=...))
"""

from ssljax import config as c

EXAMPLES = 1_281_167


def steps(a, epochs):
    """Steps in so many epochs of a run at batch `a.batch`."""
    return round(epochs * EXAMPLES / a.batch)


def make(a, *, method, augment, optim, data=None, evals=None, checkpoint=None, **rest):
    """The ConfigDict of `a.epochs` epochs at batch `a.batch`. data, evals, checkpoint: fields of their sections."""
    return c.make(
        steps=steps(a, a.epochs),
        batch=a.batch,
        method=method,
        data=dict(
            source="tfds:imagenet2012", test="validation", image_size=224, resize_ratio=256 / 224,
            features="n=64,height=300-500,width=300-500,classes=1000",
        ) | (data or {}),
        augment=augment,
        optim=optim,
        log=dict(every=100),
        checkpoint=dict(every=2000) | (checkpoint or {}),
        evals=dict(every=steps(a, 10), names=("knn",), train_examples=50_000) | (evals or {}),
        **rest,
    )  # fmt: skip
