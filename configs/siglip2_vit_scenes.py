"""SigLIP 2 on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/siglip2_vit_scenes.py --workdir runs/siglip2

Expect zero-shot colour >= 0.85, photograph >= 0.45; retrieval R@1 among 200 >= 0.15 both ways.
"""

from ssljax import embedded

FAMILY = "image-text"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=500, batch=128)
    encoder = dict(embedded.VIT, patch_size=8, pool="gap", class_token=False, mask_token=True, out=64)
    decoder = dict(embedded.TEXT, cross=True, memory_width=96, pool="last")
    head = dict(name="dino_head", hidden=64, bottleneck=32, out=256)
    method = dict(name="siglip2", encoder=encoder, text=dict(embedded.TEXT, out=64), decoder=decoder, head=head, ema=0.99)
    crops = dict(embedded.VIEWS["photo"], count=2, size=16, scale=(0.1, 0.5))
    return embedded.make_pairs(a, method=method, crops=crops, optim=dict(lr=dict(kind="cosine", peak=1e-3, warmup_steps=50)))
