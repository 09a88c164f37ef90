"""Multi-similarity on Stanford Online Products (Wang et al. 2019, section 4.1): ResNet-50 from pretrained weights, 512 dimensions, Adam.

python -m ssljax.train --config configs/metric_resnet50_products.py --workdir gs://BUCKET/metric --config.init.checkpoint=runs/resnet50

Paper: recall@1 78.2 % with BN-Inception, of classes not trained on, with batches of 80 in which every class has five images and pairs that
are mined. Batches here are drawn at random, so they are larger.
Plan: v5e:4x4, data=16: 4.6 of 16 GiB a chip, at most 29,364 images/s (HBM).
"""

from ssljax import config as c
from ssljax.models import resnet

EXAMPLES = 59_551


def get_config(arg=""):
    a = c.parse(arg, batch=1024, epochs=50, loss="multi_similarity")
    return c.make(
        steps=round(a.epochs * EXAMPLES / a.batch),
        batch=a.batch,
        method=dict(
            name="metric", loss_name=a.loss, encoder=resnet.size(50, dtype="bfloat16"), projector=dict(name="mlp", out=512, layers=1),
            alpha=2.0, beta=50.0, base=0.5,
        ),
        data=dict(
            source="tfds:stanford_online_products", label="class_id", image_size=224, resize_ratio=256 / 224,
            features="n=64,height=200-400,width=200-400,classes=1000",
        ),
        augment={"views": dict(count=2, size=224, scale=(0.16, 1.0))},
        optim=dict(name="adamw", lr=1e-4, weight_decay=5e-4),
        groups=((r"^encoder/", dict(lr=0.1)),),  # the paper's 1e-5 for what is pretrained
        log=dict(every=20),
        checkpoint=dict(every=500),
    )  # fmt: skip
