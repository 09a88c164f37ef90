"""MAE on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/mae_vit_scenes.py --workdir runs/mae

Expect (label: photograph): masked patches <= 0.80 of filling with the mean, kNN or linear >= 0.05 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=1800, batch=256)
    # Patches of a quarter of the side: what fills a hole is not its neighbours but what the picture is of. No class token, one block of
    # decoder: a step costs half of what it would with both, so there can be more of them.
    encoder = dict(embedded.VIT, patch_size=8, width=128, mlp_dim=256, pool="gap", class_token=False, position="sincos_mae")
    decoder = dict(name="mae_decoder", patch_size=8, width=64, depth=1, heads=4, mlp_dim=128)
    views = dict(count=1, scale=(0.3, 1.0), brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.0)
    optim = dict(b2=0.95, lr=dict(kind="cosine", peak=2e-3, warmup_steps=50), weight_decay=0.05)
    return embedded.make(
        a, method=dict(name="mae", encoder=encoder, decoder=decoder), views=views, optim=optim, evals=dict(names=("linear",))
    )
