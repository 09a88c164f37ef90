"""CPC on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/cpc_resnet_scenes.py --workdir runs/cpc

Expect (label: photograph): kNN >= 0.03 above the same encoder at random within 5 minutes.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)
CONTEXT = dict(name="ssljax.models.context:RowContext", width=64, depth=2)


def get_config(arg=""):
    a = embedded.parse(arg, steps=300)
    projector = dict(name="mlp", out=64, layers=1, bias=(False, False))
    method = dict(name="cpc", encoder=embedded.RESNET, side=5, rows=3, context=CONTEXT, projector=projector)
    return embedded.make(a, method=method, views=dict(count=1))
