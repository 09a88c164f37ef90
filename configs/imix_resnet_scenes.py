"""i-Mix on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/imix_resnet_scenes.py --workdir runs/imix

Expect (label: photograph): kNN >= 0.03 above the same encoder at random within 5 minutes.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=250)
    method = dict(name="imix", encoder=embedded.RESNET, projector=embedded.MLP)
    return embedded.make(a, method=method)
