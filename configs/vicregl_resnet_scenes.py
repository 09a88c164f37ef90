"""VICRegL on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/vicregl_resnet_scenes.py --workdir runs/vicregl

Expect (label: photograph): kNN or linear probe >= 0.03 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=250)
    method = dict(
        name="vicregl",
        matches=(8, 4),
        encoder=embedded.RESNET,
        projector=dict(name="mlp", hidden=256, out=256, layers=3),
        maps_projector=dict(name="mlp", hidden=64, out=64, layers=3),
    )
    return embedded.make(a, method=method, views=dict(boxes=True))
