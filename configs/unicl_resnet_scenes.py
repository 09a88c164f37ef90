"""UniCL on scenes/photo: a quarter of the pictures with the photograph's label, all with captions, minutes on two CPU cores.

python -m ssljax.train --config configs/unicl_resnet_scenes.py --workdir runs/unicl

Expect zero-shot colour >= 0.85, photograph >= 0.45; retrieval R@1 among 200 >= 0.15 both ways.
"""

from ssljax import embedded

FAMILY = "image-text"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=300, batch=256)
    method = dict(name="unicl", encoder=dict(embedded.RESNET, out=64), text=dict(embedded.TEXT, out=64), label_share=0.25)
    return embedded.make_pairs(a, method=method)
