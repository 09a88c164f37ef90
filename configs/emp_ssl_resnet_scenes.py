"""EMP-SSL on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/emp_ssl_resnet_scenes.py --workdir runs/emp_ssl

Expect (label: photograph): kNN or linear probe >= 0.03 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=200)
    method = dict(name="emp_ssl", encoder=embedded.RESNET, projector=dict(name="mlp", hidden=256, out=64))
    return embedded.make(a, method=method, views=dict(count=8, size=16, scale=(0.1, 0.5)))
