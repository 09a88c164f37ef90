"""SimVLM on scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/simvlm_resnet_scenes.py --workdir runs/simvlm

Expect the colour word and the photograph's of a caption written for a new picture mostly right; kNN or linear >= 0.02 above random.
"""

from ssljax import embedded

FAMILY = "image-text"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=400, batch=128)
    encoder = dict(embedded.RESNET, stages=(1, 1))
    method = dict(name="simvlm", encoder=encoder, text=dict(embedded.TEXT, cross=True, memory_width=32, pool="last"))
    return embedded.make_pairs(a, method=method, evals=dict(names=("knn",)))
