"""SimSiam on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/simsiam_resnet_scenes.py --workdir runs/simsiam

Expect (label: photograph): kNN >= 0.08 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=450)
    projector = dict(name="mlp", hidden=128, out=128, layers=3, last_norm=True, last_affine="none")
    method = dict(name="simsiam", encoder=embedded.RESNET, projector=projector, predictor=dict(name="mlp", hidden=32, out=128))
    return embedded.make(a, method=method)
