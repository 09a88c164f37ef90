"""MAE on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/mae_vit_scenes.py --workdir runs/mae

Expect: error on masked patches <= 0.88 of filling with the mean, linear probe (label: photograph) above the same encoder at random.
"""

from ssljax import config as c

FAMILY = "masked"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = c.parse(arg, data="photo", batch=256, steps=1100)
    return c.make(
        steps=a.steps,
        batch=a.batch,
        method=dict(
            name="mae",
            # Patches of a quarter of the side: what fills a hole is not its neighbours but what the picture is of.
            mask_ratio=0.75,
            norm_pix_loss=True,
            encoder=dict(
                name="vit", image_size=32, patch_size=8, width=128, depth=4, heads=4, mlp_dim=256, pool="gap", position="sincos_mae"
            ),
            decoder=dict(name="mae_decoder", patch_size=8, width=64, depth=2, heads=4, mlp_dim=128),
        ),
        data=dict(
            source=f"scenes/{a.data}", label="photograph" if a.data == "photo" else "digit", image_size=32, crop="device",
            mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), features="n=64,height=32,width=32,classes=14",
        ),
        augment={"views": dict(count=1, size=32, scale=(0.3, 1.0))},
        optim=dict(name="adamw", b2=0.95, lr=dict(kind="cosine", peak=2e-3, warmup_steps=50), weight_decay=0.05),
        evals=dict(every=500, names=("linear",)),
        checkpoint=dict(every=500),
    )  # fmt: skip
