"""I-JEPA on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/ijepa_vit_scenes.py --workdir runs/ijepa

Expect (label: photograph): kNN or linear >= 0.02 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=1000)
    method = dict(
        name="ijepa",
        encoder=dict(embedded.VIT, pool="gap", class_token=False, position="sincos_mae"),
        predictor=dict(name="predictor", width=48, depth=2, heads=4, mlp_dim=96, grid=(8, 8)),
        context=0.3,
        ema=0.99,
    )
    views = dict(count=1, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.0)
    return embedded.make(a, method=method, views=views, optim=dict(lr=dict(kind="cosine", peak=1e-3, warmup_steps=50), weight_decay=0.05))
