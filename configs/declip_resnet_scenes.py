"""DeCLIP on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/declip_resnet_scenes.py --workdir runs/declip

Expect zero-shot colour >= 0.85, photograph >= 0.45; retrieval R@1 among 200 >= 0.15 both ways.
"""

from ssljax import embedded

FAMILY = "image-text"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=300, batch=128)
    projector, predictor = dict(name="mlp", hidden=128, out=128, layers=2, last_norm=True), dict(name="mlp", hidden=64, out=128)
    method = dict(
        name="declip",
        encoder=dict(embedded.RESNET, out=64),
        text=dict(embedded.TEXT, out=64),
        projector=projector,
        predictor=predictor,
        queue=1024,
    )
    return embedded.make_pairs(a, method=method, augmented=embedded.VIEWS["photo"])
