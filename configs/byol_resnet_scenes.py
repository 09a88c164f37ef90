"""BYOL on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/byol_resnet_scenes.py --workdir runs/byol

Expect (label: photograph): kNN >= 0.08 above the same encoder at random within 10 minutes.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=800)
    head = dict(name="mlp", hidden=256, out=64)
    method = dict(name="byol", ema=0.98, encoder=embedded.RESNET, projector=head, predictor=head)
    return embedded.make(a, method=method)
