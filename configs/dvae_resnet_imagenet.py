"""Discrete VAE of 8,192 codes on ImageNet-1k, BEiT's first stage (Ramesh et al. 2021, section 2.1, at 112 pixels).

python -m ssljax.train --config configs/dvae_resnet_imagenet.py --workdir gs://BUCKET/dvae

Paper: none of its own; BEiT took the public tokenizer of DALL-E, of the same objective (beta 6.6, temperature 1 to 1/16).
Plan: v5e:4x4, data=16: 1.9 of 16 GiB a chip, at most 43,217 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet


def get_config(arg=""):
    a = c.parse(arg, batch=512, epochs=30)
    encoder = dict(name="resnet", stages=(2, 2, 2), bottleneck=False, width=128, stem="small")
    method = dict(name="dvae", encoder=encoder, decoder=dict(name="image_decoder", size=112, width=256), codes=8192, width=128)
    return imagenet.make(
        a,
        method=method | dict(kl_weight=6.6 / 784),
        augment={"views": dict(count=1, size=112, scale=(0.4, 1.0))},
        data=dict(image_size=112),
        optim=dict(name="adamw", b2=0.999, weight_decay=1e-4, lr=dict(kind="cosine", peak=1e-4, warmup_steps=5000, final=1.25e-6)),
    )
