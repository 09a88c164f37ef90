"""SimCLR on the embedded scenes: minutes on two CPU cores.

python -m ssljax.train --config configs/simclr_resnet_scenes.py --workdir runs/simclr
python -m ssljax.train --config configs/simclr_resnet_scenes.py:data=photo --workdir runs/simclr_photo

Expect on scenes/plain (label: digit): linear probe >= 0.60, raw pixels and a random encoder under 0.30.
Expect on scenes/photo (label: photograph): kNN >= 0.52 and >= 0.12 above the same encoder at random.
"""

from ssljax import embedded

FAMILY = "invariance"
LEARNING = ("data=plain", "data=photo")


def get_config(arg=""):
    a = embedded.parse(arg, data="plain", steps={"plain": 600, "photo": 900}, hue=0.5, grey=0.3)
    colour = dict(hue=a.hue, grey=a.grey) if a.data == "photo" else {}
    method = dict(name="simclr", temperature=0.2, encoder=embedded.RESNET, projector=embedded.MLP)
    return embedded.make(a, method=method, views=colour, evals=dict(every=300), checkpoint=dict(every=300))
