"""iGPT on scenes/photo at 16 x 16 pixels: minutes on two CPU cores.

python -m ssljax.train --config configs/igpt_text_scenes.py --workdir runs/igpt

Expect accuracy of the next colour >= 3 x chance, kNN or linear >= 0.02 above random.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=450, mask_ratio=0.0, batch=32)
    encoder = dict(name="text", width=96, depth=4, heads=4, mlp_dim=192, length=144, vocab_size=65, causal=True, pool="gap")
    views = dict(count=1, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.0)
    method = dict(name="igpt", encoder=encoder, side=12, levels=4, palette_steps=100, mask_ratio=a.mask_ratio)
    return embedded.make(a, method=method, views=views, optim=dict(lr=dict(kind="cosine", peak=1e-3, warmup_steps=50), weight_decay=0.05))
