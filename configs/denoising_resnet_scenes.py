"""Denoising autoencoder on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/denoising_resnet_scenes.py --workdir runs/denoising

Expect (label: photograph): error <= 0.9 of filling with the mean colour, kNN or linear >= 0.02 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=200)
    # Noise alone and few steps: lost pixels move the batch statistics away from a clean picture's, and from 400 steps on kNN falls again.
    method = dict(name="denoising", encoder=embedded.RESNET, decoder=dict(name="image_decoder", size=32, width=64), lost=0.0)
    views = dict(count=1, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.0)
    return embedded.make(a, method=method, views=views)
