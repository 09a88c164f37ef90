"""Alignment and uniformity on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/align_uniform_resnet_scenes.py --workdir runs/align_uniform

Expect (label: photograph): kNN >= 0.03 above the same encoder at random within 5 minutes.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=250)
    method = dict(name="align_uniform", encoder=embedded.RESNET, projector=dict(name="mlp", out=64, layers=1))
    return embedded.make(a, method=method)
