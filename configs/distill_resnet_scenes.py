"""Distillation on scenes/photo, of a classifier of photographs, without a label: minutes on two CPU cores.

python -m ssljax.train --config configs/distill_resnet_scenes.py --config.method.teacher=runs/supervised --workdir runs/distill

Expect (label: photograph): kNN >= 0.03 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)
FIRST = {"teacher": "supervised_resnet_scenes.py:data=photo"}


def get_config(arg=""):
    a = embedded.parse(arg, steps=250)
    return embedded.make(a, method=dict(name="distill", encoder=embedded.RESNET, classes=14), views=dict(count=1))
