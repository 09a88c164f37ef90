"""FroSSL on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/frossl_resnet_scenes.py --workdir runs/frossl

Expect (label: photograph): kNN or linear probe >= 0.03 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=250)
    projector = dict(name="mlp", hidden=256, out=128, layers=3)
    return embedded.make(a, method=dict(name="frossl", encoder=embedded.RESNET, projector=projector))
