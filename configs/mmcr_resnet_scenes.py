"""MMCR on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/mmcr_resnet_scenes.py --workdir runs/mmcr

Expect (label: photograph): kNN or linear probe >= 0.03 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=250)
    projector = dict(name="mlp", hidden=128, out=64, layers=3)
    return embedded.make(a, method=dict(name="mmcr", encoder=embedded.RESNET, projector=projector), views=dict(count=4))
