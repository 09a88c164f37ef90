"""FILIP on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/filip_resnet_scenes.py --workdir runs/filip

Expect zero-shot colour >= 0.85, photograph >= 0.45; retrieval R@1 among 200 >= 0.15 both ways.
"""

from ssljax import embedded

FAMILY = "image-text"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=600, batch=128)
    method = dict(name="filip", encoder=dict(embedded.RESNET, stages=(1, 1)), text=embedded.TEXT, width=64)
    return embedded.make_pairs(a, method=method)
