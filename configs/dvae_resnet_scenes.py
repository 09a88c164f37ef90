"""A discrete VAE on scenes/photo, BEiT's first stage: minutes on two CPU cores.

python -m ssljax.train --config configs/dvae_resnet_scenes.py --workdir runs/dvae

Expect error <= 0.5 of filling with the mean colour, half of the codebook in use.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=600, codes=64)
    encoder = dict(name="resnet", stages=(1, 1), bottleneck=False, width=16, stem="small")
    method = dict(
        name="dvae", encoder=encoder, decoder=dict(name="image_decoder", size=32, width=64), codes=a.codes, width=32, kl_weight=0.02
    )
    views = dict(count=1, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.0)
    return embedded.make(a, method=method, views=views)
