"""SupCon on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/supcon_resnet_scenes.py --workdir runs/supcon

Expect (label: photograph): kNN >= 0.12 above the same encoder at random within 5 minutes.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=450)
    method = dict(name="supcon", encoder=embedded.RESNET, projector=embedded.MLP)
    return embedded.make(a, method=method)
