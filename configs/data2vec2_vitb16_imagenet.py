"""data2vec 2.0 on ImageNet-1k, ViT-B/16, 150 epochs of 16 masks an image (Baevski et al. 2022, arXiv 2212.07525, appendix A).

python -m ssljax.train --config configs/data2vec2_vitb16_imagenet.py --workdir gs://BUCKET/data2vec2

Paper: 84.5 % fine-tuned, ViT-B at 224.
Plan: v5e:4x4, data=16: 11.8 of 16 GiB a chip, at most 4,790 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import vit


def get_config(arg=""):
    a = c.parse(arg, batch=512, epochs=150)
    # Post-norm, and a LayerNorm in front of the blocks, as BERT's.
    encoder = vit.size(
        "B/16", pool="gap", position="sincos_mae", norm="post", first_norm=True, last_norm="none", dtype="bfloat16", remat="dots"
    )
    decoder = dict(name="conv_decoder", dtype="bfloat16")
    return imagenet.make(
        a,
        method=dict(name="data2vec2", encoder=encoder, decoder=decoder, ema_steps=100_000),
        augment={"views": dict(count=1, size=224, scale=(0.2, 1.0))},
        optim=dict(
            name="adamw", b1=0.9, b2=0.95, clip_norm=4.0, weight_decay=0.05,
            lr=dict(kind="cosine", peak=1e-3, warmup_steps=imagenet.steps(a, 20), final=0.0),
        ),
    )  # fmt: skip
