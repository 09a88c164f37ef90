"""SLIP on scenes/photo: CLIP and SimCLR, minutes on two CPU cores.

python -m ssljax.train --config configs/slip_resnet_scenes.py --workdir runs/slip

Expect zero-shot colour >= 0.85, photograph >= 0.45; retrieval R@1 among 200 >= 0.15 both ways.
"""

from ssljax import embedded

FAMILY = "image-text"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=700, batch=128)
    encoder, text = dict(embedded.RESNET, out=64), dict(embedded.TEXT, out=64)
    method = dict(name="slip", encoder=encoder, text=text, projector=embedded.MLP, temperature=0.2)
    return embedded.make_pairs(a, method=method, augmented=embedded.VIEWS["photo"])
