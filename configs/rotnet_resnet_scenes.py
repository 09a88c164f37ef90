"""RotNet on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/rotnet_resnet_scenes.py --workdir runs/rotnet

Expect (label: photograph): accuracy of the rotation >= 0.5, kNN or linear >= 0.05 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=600)
    return embedded.make(a, method=dict(name="rotnet", encoder=embedded.RESNET), views=dict(count=1))
