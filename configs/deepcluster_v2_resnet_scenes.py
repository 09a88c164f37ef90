"""DeepCluster-v2 on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/deepcluster_v2_resnet_scenes.py --workdir runs/deepcluster_v2

Expect (label: photograph): kNN >= 0.08 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=450)
    method = dict(name="deepcluster_v2", examples=8192, clusters=100, clusterings=2, encoder=embedded.RESNET, projector=embedded.MLP)
    return embedded.make(
        a,
        method=method,
        views=dict(scale=(0.4, 1.0)),
        crops=dict(count=2, size=16, scale=(0.1, 0.4), **embedded.COLOUR),
    )
