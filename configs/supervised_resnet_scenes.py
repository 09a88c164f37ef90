"""Supervised classification on scenes/photo, the photograph as the class: minutes on two CPU cores.

python -m ssljax.train --config configs/supervised_resnet_scenes.py --workdir runs/supervised

Expect (label: photograph): kNN and linear far above every run without labels.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=250)
    return embedded.make(a, method=dict(name="supervised", encoder=dict(embedded.RESNET, out=14, out_bias=True)), views=dict(count=1))
