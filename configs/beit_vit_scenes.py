"""BEiT on scenes/photo, on the words of a discrete VAE: minutes on two CPU cores.

python -m ssljax.train --config configs/beit_vit_scenes.py --config.method.tokenizer=runs/dvae --workdir runs/beit

Expect (label: photograph): accuracy of the masked words >= 3 x the commonest word's, kNN or linear >= 0.02 above random.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)
FIRST = {"tokenizer": "dvae_resnet_scenes.py:data=photo"}


def get_config(arg=""):
    a = embedded.parse(arg, steps=800, batch=64)
    encoder = dict(embedded.VIT, mask_token=True, pool="gap", position="relative_shared")
    method = dict(name="beit", encoder=encoder, least=4)
    views = dict(count=1, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.0)
    return embedded.make(a, method=method, views=views, optim=dict(lr=dict(kind="cosine", peak=1e-3, warmup_steps=50), weight_decay=0.05))
