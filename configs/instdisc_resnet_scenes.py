"""InstDisc on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/instdisc_resnet_scenes.py --workdir runs/instdisc

Expect (label: photograph): kNN >= 0.03 above the same encoder at random within 5 minutes.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=400, noise=0)  # 8,192 rows need no sampling; noise=16 is the NCE of the large runs
    method = dict(name="instdisc", encoder=embedded.RESNET, projector=dict(name="mlp", out=64, layers=1), examples=8192, noise=a.noise)
    return embedded.make(a, method=method, views=dict(count=1))
