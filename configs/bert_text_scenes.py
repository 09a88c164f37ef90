"""BERT on the descriptions of scenes/photo: minutes on two CPU cores.

python -m ssljax.train --config configs/bert_text_scenes.py --workdir runs/bert

Expect accuracy of the masked words >= 3 x chance, and kNN near 0.99 where the encoder at random has 0.67. The descriptions never name the
photograph: the words that are said of one come together, and that is all there is to be learnt.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=1200, batch=256)
    text = dict(embedded.TEXT, norm="post", first_norm=True, last_norm="none", pool="first")
    return embedded.make_pairs(a, method=dict(name="bert", text=text), data=dict(caption="description"), evals=dict(every=0))
