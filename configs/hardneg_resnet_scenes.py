"""Hard negatives on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/hardneg_resnet_scenes.py --workdir runs/hardneg

Expect (label: photograph): kNN >= 0.03 above the same encoder at random within 5 minutes.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=250)
    method = dict(name="hardneg", encoder=embedded.RESNET, projector=embedded.MLP, temperature=0.3)
    return embedded.make(a, method=method)
