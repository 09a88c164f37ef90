"""DeepCluster on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/deepcluster_resnet_scenes.py --workdir runs/deepcluster

Expect (label: photograph): kNN or linear probe >= 0.03 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=400)
    method = dict(name="deepcluster", examples=8192, clusters=200, components=32, encoder=embedded.RESNET)
    return embedded.make(a, method=method)
