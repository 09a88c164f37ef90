"""ReSSL on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/ressl_resnet_scenes.py --workdir runs/ressl

Expect (label: photograph): kNN >= 0.03 above the same encoder at random within 5 minutes.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=photo",)
WEAK = dict(jitter=0.0, grey=0.0)  # crop and flip alone


def get_config(arg=""):
    a = embedded.parse(arg, steps=250)
    method = dict(name="ressl", encoder=embedded.RESNET, projector=embedded.MLP, queue=1024, ema=0.99)
    return embedded.make(a, method=method, views=dict(count=1), more={"weak": WEAK})
