"""PIRL on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/pirl_resnet_scenes.py --workdir runs/pirl

Expect (label: photograph): kNN >= 0.03 above the same encoder at random within 5 minutes.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)
HEAD = dict(name="mlp", out=64, layers=1)


def get_config(arg=""):
    a = embedded.parse(arg, steps=250)
    method = dict(name="pirl", encoder=embedded.RESNET, examples=8192, projector=HEAD, piece=HEAD, puzzle=HEAD)
    return embedded.make(a, method=method, views=dict(count=1), more={"puzzle": dict(size=36, scale=(0.6, 1.0))})
