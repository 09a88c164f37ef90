"""EVA on scenes/photo, on a tower that CLIP has trained: minutes on two CPU cores.

python -m ssljax.train --config configs/eva_vit_scenes.py --config.method.tower=runs/clip --workdir runs/eva

Expect target_cosine above mean_cosine, kNN or linear >= 0.02 above random.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)
FIRST = {"tower": "clip_resnet_scenes.py:data=photo"}


def get_config(arg=""):
    a = embedded.parse(arg, steps=800, batch=64)
    encoder = dict(embedded.VIT, mask_token=True, pool="gap")
    views = dict(count=1, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.0)
    method = dict(name="eva", encoder=encoder, least=4)
    return embedded.make(a, method=method, views=views, optim=dict(lr=dict(kind="cosine", peak=1e-3, warmup_steps=50), weight_decay=0.05))
