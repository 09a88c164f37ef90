"""DeepCluster on ImageNet-1k (Caron et al. 2018, section 3.3): 10,000 clusters, a batch of 256, SGD at a constant rate; here ResNet-50.

python -m ssljax.train --config configs/deepcluster_resnet50_imagenet.py --workdir gs://BUCKET/deepcluster --distributed

Paper: AlexNet and VGG-16 on Sobel-filtered images, linear probe 41.0 % (AlexNet, conv3); here colours stay and no filter is applied.
Plan: v5e:4x4, data=16: 1.2 of 16 GiB a chip, at most 62,092 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=256, epochs=200)
    return imagenet.make(
        a,
        method=dict(
            name="deepcluster",
            examples=imagenet.EXAMPLES,
            clusters=10_000,
            components=256,
            encoder=resnet.size(50, dtype="bfloat16"),
        ),
        augment={"views": dict(count=1, size=224, scale=(0.08, 1.0))},
        optim=dict(name="sgd", momentum=0.9, lr=0.05, weight_decay=1e-5),
    )
