"""MoCHi on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/mochi_resnet_scenes.py --workdir runs/mochi

Expect (label: photograph): kNN >= 0.03 above the same encoder at random within 5 minutes.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=250)
    projector = dict(name="mlp", hidden=128, out=64, norm="none")
    hard = dict(hardest=64, mixtures=64, towards=16, warmup_epochs=2.0)
    method = dict(name="mochi", encoder=embedded.RESNET, projector=projector, queue=1024, ema=0.99, **hard)
    return embedded.make(a, method=method)
