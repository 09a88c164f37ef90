"""W-MSE on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/w_mse_resnet_scenes.py --workdir runs/w_mse

Expect (label: photograph): kNN or linear probe >= 0.03 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=300)
    # A toy's batch is smaller than its features are wide: without any shrinkage their covariance would have no inverse. Much of it (0.05)
    # lets dimensions go that vary little: RankMe 6, not 20.
    method = dict(name="w_mse", size=128, shrinkage=1e-2, encoder=embedded.RESNET, projector=dict(name="mlp", hidden=128, out=32))
    return embedded.make(a, method=method, optim=dict(lr=dict(kind="cosine", peak=1e-3, warmup_steps=20)))
