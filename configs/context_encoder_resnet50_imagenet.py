"""Context encoder on ImageNet-1k with a ResNet-50 (Pathak et al. 2016, section 4, reconstruction and adversary).

python -m ssljax.train --config configs/context_encoder_resnet50_imagenet.py --workdir gs://BUCKET/context_encoder

Paper: 56.5 % mAP detection on VOC 2007 with an AlexNet.
Plan: v5e:4x4, data=16: 2.3 of 16 GiB a chip, at most 22,695 images/s (HBM).
"""

from ssljax import config as c
from ssljax import imagenet
from ssljax.models import resnet


def get_config(arg=""):
    a = c.parse(arg, batch=256, epochs=90)
    encoder = resnet.size(50, dtype="bfloat16")
    return imagenet.make(
        a,
        method=dict(
            name="context_encoder",
            encoder=encoder,
            decoder=dict(name="image_decoder", size=256, width=512, patch_size=4),
            discriminator=dict(name="resnet", stages=(1, 1, 1, 1), bottleneck=False, width=64, out=1, dtype="bfloat16"),
            adversarial=0.001,
        ),
        augment={"views": dict(count=1, size=256, scale=(0.2, 1.0))},
        optim=dict(name="sgd", momentum=0.9, lr=dict(kind="cosine", peak=0.1, warmup_steps=imagenet.steps(a, 5)), weight_decay=1e-4),
    )
