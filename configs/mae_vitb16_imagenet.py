"""MAE on ImageNet-1k, the paper's setting (He et al. 2021, appendix A.1): ViT-B/16, batch 4096, 75 % masked, 1600 epochs.

python -m ssljax.train --config configs/mae_vitb16_imagenet.py --workdir gs://BUCKET/mae --distributed

Paper's code: 83.6 % fine-tuned and 67.8 % linear after 1600 epochs. The encoder sees a quarter of the patches.
Plan: v5e:8x8, data=64: 6.4 of 16 GiB a chip, at most 197,833 images/s (HBM).
"""

from ssljax import config as c
from ssljax.models import vit

EXAMPLES = 1_281_167


def get_config(arg=""):
    a = c.parse(arg, batch=4096, epochs=1600, size="B/16")
    epoch = EXAMPLES / a.batch
    patch = int(a.size.partition("/")[2])
    return c.make(
        steps=round(a.epochs * epoch),
        batch=a.batch,
        method=dict(
            name="mae",
            mask_ratio=0.75,
            norm_pix_loss=True,
            encoder=vit.size(a.size, position="sincos_mae", pool="cls", dtype="bfloat16"),
            decoder=dict(name="mae_decoder", patch_size=patch, width=512, depth=8, heads=16, mlp_dim=2048, dtype="bfloat16"),
        ),
        data=dict(
            source="tfds:imagenet2012", test="validation", image_size=224, resize_ratio=256 / 224,
            features="n=64,height=300-500,width=300-500,classes=1000",
        ),
        augment={"views": dict(count=1, size=224, scale=(0.2, 1.0))},
        optim=dict(
            name="adamw", b1=0.9, b2=0.95,
            lr=dict(kind="cosine", peak=1.5e-4 * a.batch / 256, warmup_steps=round(40 * epoch)), weight_decay=0.05,
        ),
        log=dict(every=100),
        checkpoint=dict(every=2000),
    )  # fmt: skip
