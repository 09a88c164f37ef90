"""Colourisation on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/colorization_resnet_scenes.py --workdir runs/colorization

Expect (label: photograph): 0.7 of the mean colour's squared error, more places right than the commonest colour gives, kNN or linear
>= 0.02 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=600)
    method = dict(name="colorization", encoder=embedded.RESNET, step=20)
    return embedded.make(a, method=method, views=dict(count=1, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.0))
