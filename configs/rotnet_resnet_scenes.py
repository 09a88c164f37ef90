"""RotNet on scenes/plain: minutes on two CPU cores.

python -m ssljax.train --config configs/rotnet_resnet_scenes.py --workdir runs/rotnet

Expect (label: digit): accuracy of the rotation >= 0.5, kNN or linear >= 0.05 above the same encoder at random. On
scenes/photo the digit gives the rotation away, and the photograph is hardly looked at (kNN + 0.04).
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=plain",)


def get_config(arg=""):
    a = embedded.parse(arg, data="plain", batch=128, steps=450)
    return embedded.make(a, method=dict(name="rotnet", encoder=embedded.RESNET), views=dict(count=1))
