"""MoCo v3 on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/mocov3_resnet_scenes.py --workdir runs/mocov3

Expect (label: photograph): kNN >= 0.12 above the same encoder at random within 5 minutes.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=600)
    method = dict(name="mocov3", encoder=embedded.RESNET, projector=embedded.MLP, predictor=embedded.MLP)
    return embedded.make(a, method=method)
