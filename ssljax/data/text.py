"""Tokenizers: a list of strings -> int32 (N, length), 0 for padding. No TensorFlow, no downloads.

bytes     UTF-8 bytes
words:V   lower-cased words hashed into a vocabulary of V; nothing to train or store, and the same ids on every machine
"""

import dataclasses
import re
import zlib
from collections.abc import Callable

import numpy as np

from ssljax.errors import UserError

PAD, EOS, FIRST = 0, 1, 2  # FIRST: the first id that stands for text


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """`tokenizer(texts)` -> int32 (N, length): the ids, then EOS, then PAD. A text too long loses its end, never the EOS."""

    spec: str
    length: int
    vocab_size: int
    ids: Callable[[str], list[int]] = dataclasses.field(repr=False, compare=False)

    def __call__(self, texts):
        out = np.full((len(texts), self.length), PAD, np.int32)
        for row, text in zip(out, texts, strict=True):
            ids = self.ids(text)[: self.length - 1] + [EOS]
            row[: len(ids)] = ids
        return out


def make(spec, length, vocab=None):
    """The tokenizer named `spec` ("bytes", "words:4096"), giving `length` ids a text; vocab overrides the V of words:V.

    Raises UserError: an unknown spec, V or length too small.
    """
    kind, _, size = str(spec).partition(":")
    if length < 2:
        raise UserError(f"text length {length!r} must be at least 2: one token and the end")
    if kind == "bytes" and not size:
        return Tokenizer(spec, length, FIRST + 256, lambda text: [FIRST + b for b in text.encode("utf-8")])
    size = size if vocab is None else str(vocab)
    if kind != "words" or not size.isdigit() or int(size) <= FIRST:
        raise UserError(f"tokenizer {spec!r} is unknown; write bytes, or words:V with a vocabulary V of 3 or more, e.g. words:4096")
    buckets = int(size) - FIRST
    return Tokenizer(f"words:{size}", length, int(size), lambda text: [FIRST + _hash(word) % buckets for word in _words(text)])


def _words(text):
    """Runs of letters and digits, and every other visible character by itself."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _hash(word):
    return zlib.crc32(word.encode("utf-8"))  # Python's own hash differs from process to process
