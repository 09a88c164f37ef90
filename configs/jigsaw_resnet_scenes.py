"""Jigsaw puzzles on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/jigsaw_resnet_scenes.py --workdir runs/jigsaw

Expect (label: photograph): accuracy over 24 orders >= 2 of 24, kNN or linear >= 0.02 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=600)
    method = dict(name="jigsaw", encoder=embedded.RESNET, head=dict(name="mlp", hidden=256, out=24), side=2)
    return embedded.make(a, method=method, views=dict(count=1))
