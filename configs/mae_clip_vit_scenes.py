"""MAE-CLIP on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/mae_clip_vit_scenes.py --workdir runs/mae_clip

Expect zero-shot colour >= 0.85, photograph >= 0.45; retrieval R@1 among 200 >= 0.15 both ways.
"""

from ssljax import embedded

FAMILY = "image-text"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=550, batch=64)
    encoder = dict(embedded.VIT, pool="gap", class_token=False, position="sincos_mae", out=64)
    decoder = dict(name="mae_decoder", patch_size=4, width=64, depth=1, heads=4, mlp_dim=128)
    method = dict(name="mae_clip", encoder=encoder, text=dict(embedded.TEXT, out=64), decoder=decoder)
    return embedded.make_pairs(a, method=method, optim=dict(lr=dict(kind="cosine", peak=1e-3, warmup_steps=50)))
