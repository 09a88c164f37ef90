"""SimMIM on ImageNet-1k, ViT-B/16, 800 epochs (Xie et al. 2021, section 4.1 and appendix A).

python -m ssljax.train --config configs/simmim_vitb16_imagenet.py --workdir gs://BUCKET/simmim

Paper: 83.8 % fine-tuned, ViT-B at 224.
Plan: v5e:8x8, data=64: 3.3 of 16 GiB a chip, at most 118,948 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import vit


def get_config(arg=""):
    a = c.parse(arg, batch=2048, epochs=800)
    encoder = vit.size(
        "B/16", mask_token=True, class_token=False, pool="gap", layer_scale=0.1, drop_path=0.1, dtype="bfloat16", remat="dots"
    )
    return imagenet.make(
        a,
        method=dict(name="simmim", encoder=encoder, decoder=dict(name="pixel_shuffle", patch_size=16), mask_ratio=0.6, cell=2),
        augment={"views": dict(count=1, size=224, scale=(0.67, 1.0))},
        optim=dict(
            name="adamw", b1=0.9, b2=0.999, clip_norm=5.0, weight_decay=0.05,
            lr=dict(kind="cosine", peak=1e-4 * a.batch / 512, warmup_steps=imagenet.steps(a, 20), final=5e-7),
        ),
    )  # fmt: skip
