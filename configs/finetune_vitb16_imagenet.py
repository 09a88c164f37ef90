"""Fine-tuning a ViT-B/16 on ImageNet-1k as MAE does (He et al. 2021, appendix A.1); `:labels=1%` and `10%` for semi-supervised learning.

python -m ssljax.train --config configs/finetune_vitb16_imagenet.py --config.init.checkpoint=gs://BUCKET/mae --workdir gs://BUCKET/mae_tuned

Paper: 83.6 % top-1 after MAE's 1,600 epochs. Layer-wise decay, mixup, CutMix, drop-path, RandAugment, an average of the weights.
Plan: v5e:4x4, data=16: 6.6 of 16 GiB a chip, at most 26,516 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.augment import recipes
from ssljax.models import vit


def get_config(arg=""):
    a = c.parse(arg, batch=1024, epochs=100, labels="100%")
    encoder = vit.size("B/16", pool="gap", position="sincos_mae", drop_path=0.1, dtype="bfloat16", out=1000, out_bias=True)
    lr = dict(kind="cosine", peak=5e-4 * a.batch / 256, warmup_steps=imagenet.steps(a, 5))
    return imagenet.make(
        a,
        method=dict(name="supervised", encoder=encoder, label_smoothing=0.1, mixup=0.8, cutmix=1.0),
        data=dict(train=f"train[:{a.labels}]"),
        augment=recipes.make("supervised"),
        optim=dict(name="adamw", b2=0.999, lr=lr, weight_decay=0.05, layer_decay=0.65, ema=0.9999),
        evals=dict(names=("classify",)),
        init=dict(drop="^decoder/|mask_token"),
    )
