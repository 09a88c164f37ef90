"""W-MSE on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/w_mse_resnet_scenes.py --workdir runs/w_mse

Expect (label: photograph): kNN or linear probe >= 0.03 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=400)
    # Slices of a toy are shorter than their features are wide: without some shrinkage their covariance would have no inverse.
    method = dict(name="w_mse", size=64, shrinkage=0.05, encoder=embedded.RESNET, projector=dict(name="mlp", hidden=128, out=32))
    return embedded.make(a, method=method)
