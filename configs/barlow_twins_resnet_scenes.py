"""Barlow Twins on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/barlow_twins_resnet_scenes.py --workdir runs/barlow_twins

Expect (label: photograph): kNN or linear probe >= 0.12 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=600)
    projector = dict(name="mlp", hidden=256, out=256, layers=3)
    method = dict(name="barlow_twins", off_diagonal=0.01, scale=0.1, encoder=embedded.RESNET, projector=projector)
    return embedded.make(a, method=method)
