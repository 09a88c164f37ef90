"""Context encoder on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/context_encoder_resnet_scenes.py --workdir runs/context_encoder

Expect (label: photograph): error in the hole <= 0.9 of filling with the mean colour around it, kNN or linear >= 0.02 above random.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=600, adversarial=0.0, masks="central")
    method = dict(
        name="context_encoder",
        encoder=embedded.RESNET,
        decoder=dict(name="image_decoder", size=32, width=64),
        masks=a.masks,
        adversarial=a.adversarial,
    )
    return embedded.make(a, method=method, views=dict(count=1))
