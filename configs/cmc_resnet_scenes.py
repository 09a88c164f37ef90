"""CMC on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/cmc_resnet_scenes.py --workdir runs/cmc

Expect (label: photograph): kNN >= 0.03 above the same encoder at random within 5 minutes.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=250)
    projector = dict(name="mlp", out=64, layers=1)
    method = dict(name="cmc", encoder=embedded.RESNET, projector=projector, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return embedded.make(a, method=method, views=dict(count=1, hue=0.1, grey=0.0))
