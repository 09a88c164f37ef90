"""Context prediction on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/relative_patch_resnet_scenes.py --workdir runs/relative_patch

Expect (label: photograph): accuracy over the 8 places >= 0.25, kNN or linear >= 0.02 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=2000)
    method = dict(name="relative_patch", encoder=embedded.RESNET, head=dict(name="mlp", hidden=128, out=8), drop_colours=0.5)
    return embedded.make(a, method=method, views=dict(count=1))
