"""VirTex, ResNet-50 on COCO Captions (Desai and Johnson 2020, section 3 and appendix A.1).

python -m ssljax.train --config configs/virtex_resnet50_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/virtex

Paper: 53.8 % linear on ImageNet-1k, 88.7 mAP on VOC07, from 118 k pictures.
Plan: v5e:4x4, data=16: 2.1 of 16 GiB a chip, at most 26,440 images/s (links).
"""

from ssljax import config as c
from ssljax import webimages
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=256, examples=128_000_000)
    text = webimages.TEXT | dict(width=1024, heads=16, mlp_dim=4096, depth=1, length=30, causal=True, cross=True, memory_width=2048)
    sgd = dict(name="sgd", momentum=0.9, weight_decay=1e-4, lr=dict(kind="cosine", peak=0.2, warmup_steps=10_000))
    method = dict(name="virtex", encoder=resnet.size(50, dtype="bfloat16"), text=text | dict(pool="last"))
    return webimages.make(a, method=method, optim=sgd)
