"""MoCo v2 on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/moco_resnet_scenes.py --workdir runs/moco

Expect (label: photograph): kNN >= 0.12 above the same encoder at random within 5 minutes.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=450)
    method = dict(name="moco", encoder=embedded.RESNET, projector=dict(name="mlp", hidden=128, out=64, norm="none"), queue=1024, ema=0.99)
    return embedded.make(a, method=method)
