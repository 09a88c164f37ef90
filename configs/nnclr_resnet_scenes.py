"""NNCLR on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/nnclr_resnet_scenes.py --workdir runs/nnclr

Expect (label: photograph): kNN >= 0.12 above the same encoder at random within 5 minutes.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=600)
    method = dict(name="nnclr", encoder=embedded.RESNET, projector=embedded.MLP, predictor=embedded.MLP, queue=1024)
    return embedded.make(a, method=method)
