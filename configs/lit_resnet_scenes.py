"""LiT on scenes/photo, on a tower that SimCLR has pretrained: minutes on two CPU cores.

python -m ssljax.train --config configs/lit_resnet_scenes.py --config.method.tower=runs/simclr_hue --workdir runs/lit

Expect zero-shot colour >= 0.85, photograph >= 0.45; retrieval R@1 among 200 >= 0.15 both ways.
"""

from ssljax import embedded

FAMILY = "image-text"
LEARNING = ("data=photo",)
FIRST = {"tower": "simclr_resnet_scenes.py:data=photo,hue=0.1,grey=0.0"}  # else the tower does not know colours, which captions name


def get_config(arg=""):
    a = embedded.parse(arg, steps=700, batch=256)
    method = dict(name="lit", encoder=embedded.RESNET, text=embedded.TEXT, out=64)
    return embedded.make_pairs(a, method=method)
