"""CAE on ImageNet-1k, ViT-B/16, 1600 epochs (Chen et al. 2022, section 4.1).

python -m ssljax.train --config configs/cae_vitb16_imagenet.py --config.method.tokenizer=gs://BUCKET/dvae --workdir gs://BUCKET/cae

Paper: 83.9 % fine-tuned, ViT-B at 224.
Plan: v5e:8x8, data=64: 6.1 of 16 GiB a chip, at most 90,240 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import vit


def get_config(arg=""):
    a = c.parse(arg, batch=2048, epochs=1600)
    encoder = vit.size("B/16", pool="gap", position="sincos_mae", layer_scale=0.1, drop_path=0.1, dtype="bfloat16")
    regressor = dict(name="latent_regressor", depth=4, heads=12, mlp_dim=3072, layer_scale=0.1)
    return imagenet.make(
        a,
        method=dict(name="cae", encoder=encoder, regressor=regressor, mask_ratio=0.5, align_weight=2.0),
        augment={"views": dict(count=1, size=224, scale=(0.08, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0)},
        optim=dict(
            name="adamw", b1=0.9, b2=0.999, clip_norm=3.0, weight_decay=0.05,
            lr=dict(kind="cosine", peak=1.5e-3, warmup_steps=imagenet.steps(a, 10), final=1e-5),
        ),
    )  # fmt: skip
