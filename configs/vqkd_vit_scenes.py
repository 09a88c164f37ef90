"""VQ-KD on scenes/photo, BEiT v2's first stage: minutes on two CPU cores.

python -m ssljax.train --config configs/vqkd_vit_scenes.py --config.method.tower=runs/simclr --workdir runs/vqkd

Expect the teacher's features rebuilt (target_cosine above 0.8), half of the codebook in use.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)
FIRST = {"tower": "simclr_resnet_scenes.py:data=photo"}


def get_config(arg=""):
    a = embedded.parse(arg, steps=450, codes=64)
    encoder = dict(embedded.VIT, depth=2, class_token=False, pool="gap")
    views = dict(count=1, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.0)
    method = dict(name="vqkd", encoder=encoder, codes=a.codes, width=16, decoder_depth=1, decoder_width=96, decoder_heads=4, revive=0.2)
    return embedded.make(a, method=method, views=views, optim=dict(lr=dict(kind="cosine", peak=1e-3, warmup_steps=50), weight_decay=0.05))
