"""BEiT v2 on scenes/photo, on the words of VQ-KD, with patch aggregation: minutes on two CPU cores.

python -m ssljax.train --config configs/beit_v2_vit_scenes.py --config.method.tokenizer=runs/vqkd --workdir runs/beit_v2

Expect accuracy of the masked words >= 3 x chance, kNN or linear >= 0.02 above random.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)
FIRST = {"tokenizer": "vqkd_vit_scenes.py:data=photo"}


def get_config(arg=""):
    a = embedded.parse(arg, steps=500, batch=64)
    encoder = dict(embedded.VIT, mask_token=True, pool="gap", position="relative_shared")
    views = dict(count=1, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.0)
    method = dict(name="beit", encoder=encoder, least=4, aggregate=3, aggregate_depth=1)
    return embedded.make(a, method=method, views=views, optim=dict(lr=dict(kind="cosine", peak=1e-3, warmup_steps=50), weight_decay=0.05))
