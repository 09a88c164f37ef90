"""CLIP distilled from a teacher on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/distill_clip_resnet_scenes.py --config.method.teacher=runs/clip --workdir runs/student

Expect zero-shot colour >= 0.85, photograph >= 0.45; retrieval R@1 among 200 >= 0.15 both ways.
"""

from ssljax import embedded

FAMILY = "image-text"
LEARNING = ("data=photo",)
FIRST = {"teacher": "clip_resnet_scenes.py:data=photo"}


def get_config(arg=""):
    a = embedded.parse(arg, steps=300, batch=256)
    method = dict(name="distill_clip", encoder=dict(embedded.RESNET, out=64), text=dict(embedded.TEXT, out=64))
    return embedded.make_pairs(a, method=method)
