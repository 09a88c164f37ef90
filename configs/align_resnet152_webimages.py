"""ALIGN's recipe (Jia et al. 2021, sections 4 and 5.1): a convolutional network and BERT, noisy alternative texts, LAMB, batch 16,384.

python -m ssljax.train --config configs/align_resnet152_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/align

Paper: 76.4 % zero-shot on ImageNet-1k, EfficientNet-L2 and BERT-Large on 1.8 B pairs. Here ResNet-152 for the former, BERT-Base's size
and no label smoothing.
Plan: v5e:16x16, data=256: 13.5 of 16 GiB a chip, at most 174,573 images/s (HBM).
"""

from ssljax import config as c
from ssljax import webimages
from ssljax.models import resnet, text


def get_config(arg=""):
    a = c.parse(arg, batch=16384, examples=19_660_800_000)
    tower = text.size("B", vocab_size=100_000, length=64, pool="first", first_norm=True, norm="post", last_norm="none", out=640)
    return webimages.make(
        a,
        method=dict(name="clip", encoder=resnet.size(152, out=640, dtype="bfloat16"), text=tower, init_temperature=1.0),
        data=dict(image_size=289, tokenizer="words:100000"),
        augment={"views": dict(count=1, size=289, scale=(0.8, 1.0), flip=0.5)},
        optim=dict(name="lamb", lr=dict(kind="linear", peak=1e-3, warmup_steps=10_000), weight_decay=1e-5),
    )
