"""Whether captions name what is on the pictures."""

import numpy as np
import pytest

from ssljax import evals
from ssljax.evals import captions

pytestmark = pytest.mark.quick


def context(texts, **more):
    images = np.zeros((len(texts), 4, 4, 3), np.uint8)
    labels = {"image": images, "label:colour": np.array([0, 1, 1, 0]), "label:digit": np.array([2, 2, 0, 1])}
    names = {"colour": ["red", "dark blue"], "digit": ["one", "two", "seven"]}
    return evals.Context(train={}, test=labels, classes=2, class_names=names, write=lambda images: texts[: len(images)], **more)


def test_a_caption_counts_that_names_its_class_and_no_other():
    out = captions.run(context(["a RED seven", "a dark blue, seven", "a red one on dark blue", "a twofold redness"]))
    assert {k: np.mean(v) for k, v in out.items()} == {"caption_colour": 0.5, "caption_digit": 0.75}


def test_where_it_does_not_apply_the_reason_is_given():
    with pytest.raises(evals.NotApplicable, match="writes no captions"):
        captions.run(evals.Context(train={}, test={}, classes=2))
    with pytest.raises(evals.NotApplicable, match="names any class"):
        captions.run(context(["nothing", "at", "all", "here"]))
