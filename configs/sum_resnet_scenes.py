"""A sum of objectives on one encoder, SimCLR + 0.5 DINO + 0.1 KoLeo, on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/sum_resnet_scenes.py --workdir runs/sum
python -m ssljax.train --config configs/sum_resnet_scenes.py --config.method.terms.dino.weight=1.0 --workdir runs/sum_more_dino

Expect (label: photograph): kNN >= 0.08 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=250)
    head = dict(name="dino_head", hidden=128, bottleneck=64, out=256, layers=3)
    terms = dict(
        simclr=dict(weight=1.0, temperature=0.2, projector=embedded.MLP),
        dino=dict(weight=0.5, ema=0.99, freeze_last_layer_steps=50, head=head),
        koleo=dict(weight=0.1),
    )
    return embedded.make(a, method=dict(name="sum", encoder=embedded.RESNET, terms=terms, features="simclr"), optim=dict(clip_norm=3.0))
