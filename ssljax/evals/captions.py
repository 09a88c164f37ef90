"""Captions: does the text that a model writes of a picture name what is on it?"""

import re

import numpy as np

from ssljax.evals import Context, NotApplicable, need

NEEDS = "a method that writes captions, pictures of the test set, and class names of at least one kind of label"
PICTURES = 512  # that are written about


def run(context: Context) -> dict:
    """{"caption_<kind>": whether the caption of each test picture has the name of their class, as whole words, and of no other class}."""
    if context.write is None:
        raise NotApplicable("the method writes no captions")
    need(context, test=("image",))
    count = min(PICTURES, len(context.test["image"]))
    texts = context.write(context.test["image"][:count])
    out = {}
    for kind, names in context.class_names.items():
        labels = context.test.get(f"label:{kind}")
        if labels is not None and any(_has(text, name) for text in texts for name in names):
            out[f"caption_{kind}"] = named(texts, names, labels[:count])
    if not out:
        raise NotApplicable("no caption names any class")
    return out


def named(texts, names, labels) -> np.ndarray:
    """Whether each text has names[label] and none of the other names, bool (N,). labels: int (N,)."""
    said = [{i for i, name in enumerate(names) if _has(text, name)} for text in texts]
    return np.array([names_of == {int(label)} for names_of, label in zip(said, labels, strict=True)])


def _has(text, name):
    return re.search(rf"\b{re.escape(name.lower())}\b", text.lower()) is not None
