"""TiCo on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/tico_resnet_scenes.py --workdir runs/tico

Expect (label: photograph): kNN or linear probe >= 0.03 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=250)
    method = dict(name="tico", weight=8.0, encoder=embedded.RESNET, projector=dict(name="mlp", hidden=256, out=64))
    return embedded.make(a, method=method)
