"""SwAV on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/swav_resnet_scenes.py --workdir runs/swav

Expect (label: photograph): kNN >= 0.08 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=600)
    return embedded.make(
        a,
        method=dict(
            name="swav", prototypes=100, queue=512, queue_start_epochs=1.0, freeze_prototypes_steps=20, encoder=embedded.RESNET,
            projector=embedded.MLP,
        ),
        views=dict(scale=(0.4, 1.0)),
        crops=dict(count=4, size=16, scale=(0.1, 0.4), **embedded.COLOUR),
    )  # fmt: skip
