"""FLIP on scenes/photo: CLIP on half of the patches, minutes on two CPU cores.

python -m ssljax.train --config configs/flip_vit_scenes.py --workdir runs/flip

Expect zero-shot colour >= 0.85, photograph >= 0.45; retrieval R@1 among 200 >= 0.15 both ways.
"""

from ssljax import embedded

FAMILY = "image-text"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=700, batch=128, mask_ratio=0.5)
    encoder = dict(embedded.VIT, pool="gap", class_token=False, out=64)
    method = dict(name="clip", encoder=encoder, text=dict(embedded.TEXT, out=64), mask_ratio=a.mask_ratio)
    return embedded.make_pairs(a, method=method, optim=dict(lr=dict(kind="cosine", peak=1e-3, warmup_steps=50)))
