"""Metric learning on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/metric_resnet_scenes.py --workdir runs/metric

Expect (label: photograph): kNN >= 0.03 above the same encoder at random within 5 minutes.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=250, loss="multi_similarity")
    method = dict(name="metric", encoder=embedded.RESNET, loss_name=a.loss, projector=dict(name="mlp", out=64, layers=1))
    return embedded.make(a, method=method)
