"""BERT on the captions of scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/bert_text_scenes.py --workdir runs/bert

Expect accuracy of the masked words >= 3 x chance. The label is no measure of it: the words of a caption
are drawn independently of each other; nine captions in ten say it, no linear probe can have more than 0.907, and one at random has 0.89.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=400, batch=256)
    text = dict(embedded.TEXT, norm="post", first_norm=True, last_norm="none", pool="first")
    return embedded.make_pairs(a, method=dict(name="bert", text=text), evals=dict(every=0))
