"""LeJEPA on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/lejepa_resnet_scenes.py --workdir runs/lejepa

Expect (label: photograph): kNN or linear probe >= 0.03 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=250)
    method = dict(name="lejepa", directions=256, encoder=embedded.RESNET, projector=dict(name="mlp", hidden=256, out=32, layers=3))
    return embedded.make(a, method=method, crops=dict(count=4, size=16, scale=(0.1, 0.4), **embedded.COLOUR))
