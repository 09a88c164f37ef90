"""Tokenizers: ids, end, padding, truncation; the same on every machine."""

import numpy as np
import pytest

from ssljax.data import scenes_recipe, text
from ssljax.errors import UserError

pytestmark = pytest.mark.quick


def test_bytes():
    tokenizer = text.make("bytes", 6)
    ids = tokenizer(["ab", "", "é", "abcdefgh"])
    assert ids.dtype == np.int32 and tokenizer.vocab_size == 258
    assert ids.tolist() == [
        [2 + 97, 2 + 98, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [2 + 0xC3, 2 + 0xA9, 1, 0, 0, 0],
        [2 + 97, 2 + 98, 2 + 99, 2 + 100, 2 + 101, 1],
    ]


def test_words():
    tokenizer = text.make("words:4096", 5)
    one, two = tokenizer(["A red, seven", "a RED , Seven!"])
    assert one.tolist() == two.tolist() and one[-1] == 1 and (one[:-1] >= 2).all()
    # CRC-32 of "red", from its definition: reflected polynomial 0xEDB88320.
    crc = 0xFFFFFFFF
    for byte in b"red":
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
    assert one[1] == 2 + (crc ^ 0xFFFFFFFF) % 4094
    assert text.make("words", 5, vocab=4096)(["red"]).tolist() == text.make("words:4096", 5)(["red"]).tolist()


def test_the_embedded_captions_fit_their_vocabulary():
    """No two of their words share an id at 2,048, and no caption is cut at 12."""
    words = sorted({word for caption in scenes_recipe.make("photo", "train", 3000)["caption"] for word in caption.split()})
    assert len(set(text.make("words:2048", 2)(words)[:, 0].tolist())) == len(words)
    assert (text.make("words:2048", 12)(scenes_recipe.make("photo", "test", 500)["caption"])[:, -1] <= 1).all()


@pytest.mark.parametrize("spec", ["byte", "words", "words:2", "words:x", "bytes:3"])
def test_unknown_specs(spec):
    with pytest.raises(UserError, match="words:V"):
        text.make(spec, 8)
    with pytest.raises(UserError, match="at least 2"):
        text.make("bytes", 1)
