"""DirectCLR on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/directclr_resnet_scenes.py --workdir runs/directclr

Expect (label: photograph): kNN >= 0.03 above the same encoder at random within 5 minutes.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=250)
    method = dict(name="directclr", encoder=embedded.RESNET, dim=16, temperature=0.2)
    return embedded.make(a, method=method)
