"""Tokenizers: a list of strings -> int32 (N, length). No TensorFlow, no downloads, no pickle: whatever a spec needs lies on this machine.

bytes                       UTF-8 bytes
words:V                     lower-cased words hashed into a vocabulary of V; nothing to train or store, the same ids on every machine
clip:PATH                   CLIP's byte-pair encoding; PATH is its merges file, bpe_simple_vocab_16e6.txt.gz, or unpacked, or its folder
sentencepiece:PATH.model    a SentencePiece model under big_vision's rule for SigLIP
tokenizers:PATH.json        a file of Hugging Face's tokenizers library, as it says itself
bpe:V[:SOURCE]              a byte-pair encoding of at most V tokens, trained here on the training captions of a data source

How a text begins, ends, is cut and is filled up to `length`:

                            start  end          too long                    filled with
bytes, words                       1            cut, the end kept           0
clip                        V - 2  V - 1        cut, the end kept           0; as CLIP with `truncate=True`, which else refuses long texts
sentencepiece                      model's EOS  cut, the end kept: "sticky" model's EOS: SigLIP pads with id 1, which is EOS in its model
sentencepiece+pad                  model's EOS  cut, the end kept: "sticky" model's padding id: SigLIP 2, id 0 in its model
tokenizers                  what the file's post-processor adds, kept       the file's padding, or its <pad> or [PAD], or 0
bpe                                V - 1        cut, the end kept           0

What becomes of the letters: words and bpe lower-case; clip repairs the text (ftfy), unescapes HTML, collapses white space and
lower-cases; sentencepiece lower-cases ASCII letters alone, as big_vision's training does (`tf.strings.lower`). Public SigLIP
checkpoints are judged on canonical texts (`canonicalize`): that is sentencepiece+canonical, and the options add up:
sentencepiece+canonical+pad.
"""

import collections
import dataclasses
import functools
import gzip
import html
import json
import pathlib
import re
import string
import zlib
from collections.abc import Callable

import numpy as np

from ssljax.errors import UserError

PAD, EOS, FIRST = 0, 1, 2  # of bytes and words. FIRST: the first id that stands for text
CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"
CLIP_MERGES = 49152 - 256 - 2  # lines of the file that CLIP reads, after the first; with 512 letters and 2 marks: 49,408 ids
START_TEXT, END_TEXT = "<|startoftext|>", "<|endoftext|>"
# For lower-cased text. CLIP ignores case, which then changes two things: the long s counts as s, and U+0345, a mark whose capital is a
# letter, matches nothing.
CLIP_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'[sſ]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{0345}]+"
BPE_PAD, BPE_END = "<pad>", "<end>"
SPECS = "bytes, words:V, clip:PATH, sentencepiece:PATH.model, tokenizers:PATH.json or bpe:V:SOURCE"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """`tokenizer(texts)` -> int32 (N, length): start, the ids, end, then pad. A text too long loses its last ids, never its end.

    encode: list of texts -> list of lists of ids, all in one call. end: None where `encode` has put start and end itself.
    """

    spec: str
    length: int
    vocab_size: int
    encode: Callable[[list[str]], list[list[int]]] = dataclasses.field(repr=False, compare=False)
    start: tuple[int, ...] = ()
    end: int | None = EOS
    pad: int = PAD
    spell: Callable[[list[int]], str] | None = dataclasses.field(default=None, repr=False, compare=False)

    def decode(self, rows, captions=()):
        """Ids int (N, T) -> N strings, marks and padding left out. words:V keeps no words: there `captions`, texts such as the ids were
        made of, say which word an id mostly is; "?" is an id of none of them."""
        spell = self.spell or _speller(self, captions)
        out = []
        for row in np.asarray(rows).tolist():
            ends = [i for i, token in enumerate(row) if token in (self.end, self.pad)]
            out.append(spell([token for token in row[: min(ends, default=len(row))] if token not in self.start]))
        return out

    def __call__(self, texts):
        out = np.full((len(texts), self.length), self.pad, np.int32)
        end = () if self.end is None else (self.end,)
        room = self.length - len(self.start) - len(end)
        for row, ids in zip(out, self.encode(list(texts)), strict=True):
            ids = [*self.start, *ids[:room], *end]
            row[: len(ids)] = ids
        return out


def make(spec, length, vocab=None, captions=None):
    """The tokenizer named `spec` (see the module), giving `length` ids a text.

    vocab: overrides the V of words:V. captions: texts that bpe:V is trained on. Raises UserError: an unknown spec, V or length too
    small, a file that is missing or is not what the spec says.
    """
    kind, _, rest = str(spec).partition(":")
    kind, *options = kind.split("+")
    if length < 2:
        raise UserError(f"text length {length!r} must be at least 2: one token and the end")
    if kind == "bytes" and not rest and not options:
        spell = lambda ids: bytes(i - FIRST for i in ids if FIRST <= i < FIRST + 256).decode("utf-8", "replace")  # noqa: E731
        encode = lambda texts: [[FIRST + b for b in text.encode("utf-8")] for text in texts]  # noqa: E731
        return Tokenizer(spec, length, FIRST + 256, encode, spell=spell)
    if kind == "words" and not options:
        return _words(spec, length, rest if vocab is None else str(vocab))
    if kind == "sentencepiece" and rest and set(options) <= {"pad", "canonical"}:
        return _sentencepiece(spec, length, _file(spec, rest, "a SentencePiece model (.model)"), options)
    if kind == "tokenizers" and rest and not options:
        return _from_json(spec, length, _file(spec, rest, "a JSON file of the tokenizers library"))
    if kind == "clip" and rest and not options:
        path = pathlib.Path(rest).expanduser()
        return _clip(spec, length, _file(spec, path / CLIP_FILE if path.is_dir() else path, f"CLIP's merges, {CLIP_FILE}"))
    if kind == "bpe" and rest and not options:
        return _bpe(spec, length, rest.partition(":")[0], captions)
    raise UserError(f"tokenizer {spec!r} is unknown; write {SPECS}")


def _file(spec, path, what):
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"tokenizer {spec!r}: there is no file {path}; it must be {what}, and nothing is downloaded")
    return path


def with_knowledge(tokenizer, path):
    """The tokenizer with each text enriched by what a file says of its words (K-Lite, Shen et al. 2022, arXiv 2204.09222, section 3):
    "a red seven on gravel" -> "a red seven on gravel, gravel: small loose stones". Longer entries first, each once; where the text gets
    too long, the knowledge is cut. path: JSON, {word or words: what it means}. Raises UserError for a file that is none."""
    file = _file("knowledge", path, "a JSON file, {word: what it means}")
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"config.data.knowledge={path!r} is no JSON: {error}") from None
    if not isinstance(entries, dict) or not all(isinstance(meaning, str) for meaning in entries.values()):
        raise UserError(f"config.data.knowledge={path!r}: expected one JSON object, {{word: what it means}}, of strings")
    terms = sorted(entries, key=lambda term: (-len(term), term))
    find = re.compile("|".join(rf"\b{re.escape(term.lower())}\b" for term in terms)) if terms else None
    lower = {term.lower(): f"{term}: {meaning}" for term, meaning in entries.items()}

    def enrich(text):
        found = dict.fromkeys(find.findall(text.lower())) if find else {}
        return ", ".join([text, *(lower[term] for term in found)])

    return dataclasses.replace(tokenizer, encode=lambda texts: tokenizer.encode([enrich(text) for text in texts]))


# ----------------------------------------------------------------------------------------------------------------- words


def _words(spec, length, size):
    if not size.isdigit() or int(size) <= FIRST:
        raise UserError(f"tokenizer {spec!r}: write words:V with a vocabulary V of 3 or more, e.g. words:4096")
    buckets = int(size) - FIRST
    encode = lambda texts: [[FIRST + _hash(word) % buckets for word in _split_words(text)] for text in texts]  # noqa: E731
    return Tokenizer(f"words:{size}", length, int(size), encode)


def _speller(tokenizer, captions):
    """ids -> words, by the words of `captions` that hash to them, the commonest of each."""
    counts = collections.Counter(word for caption in captions for word in _split_words(caption))
    words = {}
    for word, _ in reversed(counts.most_common()):
        words[tokenizer.encode([word])[0][0]] = word
    return lambda ids: " ".join(words.get(i, "?") for i in ids)


def _split_words(text):
    """Runs of letters and digits, and every other visible character by itself."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _hash(word):
    return zlib.crc32(word.encode("utf-8"))  # Python's own hash differs from process to process


# ------------------------------------------------------------------------------------------------------------------ CLIP


def _clip(spec, length, path):
    """CLIP's byte-pair encoding (Radford et al. 2021, section 2.4; openai/CLIP, simple_tokenizer.py), merges by the tokenizers library.

    Ids: the 256 letters that stand for bytes, the same at the end of a word, the merges in order, start, end.
    """
    from tokenizers import Regex, models, pre_tokenizers

    alphabet = byte_alphabet()
    merges = _clip_merges(spec, path)
    letters = list(alphabet.values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), START_TEXT, END_TEXT]
    ids = {token: i for i, token in enumerate(tokens)}  # of two spellings of one token the later counts, as in CLIP
    try:
        model = models.BPE({token: i for token, i in ids.items()}, merges, end_of_word_suffix="</w>")
    except Exception as error:  # the library has no class of its own
        raise UserError(f"tokenizer {spec!r}: {path} is not a list of merges: {error}") from error
    words = pre_tokenizers.Split(Regex(CLIP_PATTERN), behavior="removed", invert=True)

    @functools.lru_cache(maxsize=2**17)
    def word_ids(word):
        # The regex finds the marks where CLIP's does; added tokens of the library would be found inside "<<|endoftext|>" as well.
        if word in (START_TEXT, END_TEXT):
            return [ids[word]]
        return [token.id for token in model.tokenize("".join(alphabet[b] for b in word.encode("utf-8")))]

    def encode(texts):
        return [[i for word, _ in words.pre_tokenize_str(clean_for_clip(text)) for i in word_ids(word)] for text in texts]

    letter_bytes = {letter: byte for byte, letter in alphabet.items()}

    def spell(chosen):
        text = "".join(tokens[i] for i in chosen if i < len(tokens) - 2).replace("</w>", " ")
        return bytes(letter_bytes.get(c, 32) for c in text).decode("utf-8", "replace").strip()

    return Tokenizer(spec, length, len(tokens), encode, start=(len(tokens) - 2,), end=len(tokens) - 1, spell=spell)


def _clip_merges(spec, path):
    data = path.read_bytes()
    try:
        lines = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"tokenizer {spec!r}: {path} is damaged or not {CLIP_FILE}: {error}") from error
    merges = [tuple(line.split()) for line in lines[1 : 1 + CLIP_MERGES] if line.strip()]
    wrong = next((i for i, merge in enumerate(merges) if len(merge) != 2), None)
    if wrong is not None or not merges:
        raise UserError(
            f"tokenizer {spec!r}: {path} is not {CLIP_FILE}: after the first line each line holds two pieces; see line {(wrong or 0) + 2}"
        )
    return merges


def byte_alphabet():
    """{byte: the visible character that stands for it} (GPT-2, Radford et al. 2019, section 2.2): itself where it is one, else the next
    from U+0100 on. In the order in which CLIP numbers them: the visible ones first."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def clean_for_clip(text):
    """ "It&#39;s  A cafÃ©" -> "it's a café": mojibake repaired, HTML unescaped twice, white space collapsed, lower case."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


# --------------------------------------------------------------------------------------------------------- SentencePiece


def _sentencepiece(spec, length, path, options):
    """big_vision's `tokenize(eos="sticky", lower=True)`, with pad_value the EOS id, 1 (SigLIP, Zhai et al. 2023), or the model's own."""
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise UserError(f"tokenizer {spec!r}: {path} is not a SentencePiece model: {str(error).splitlines()[0]}") from error
    pad = model.pad_id() if "pad" in options else model.eos_id()
    for name, value in {"an end (</s>)": model.eos_id(), "padding (<pad>)": pad}.items():
        if value < 0:
            raise UserError(f"tokenizer {spec!r}: the model has no token for {name}; train it with one, --eos_id=1 --pad_id=0")
    clean = canonicalize if "canonical" in options else _lower_ascii
    return Tokenizer(
        spec, length, model.get_piece_size(), lambda texts: model.encode([clean(t) for t in texts]), end=model.eos_id(), pad=pad,
        spell=lambda ids: model.decode([i for i in ids if i < model.get_piece_size()]),
    )  # fmt: skip


def _lower_ascii(text):
    return text.encode("utf-8").lower().decode("utf-8")  # bytes know no letter beyond ASCII, and tf.strings.lower works on bytes


def canonicalize(text, keep=""):
    """ "A_photo: of {}." -> "a photo of {}" with keep="{}": no ASCII punctuation but `keep`, lower case, single spaces.

    What big_vision does to class names and prompt templates before SigLIP is judged (evaluators/proj/image_text/prompt_engineering.py).
    """
    parts = text.replace("_", " ").split(keep) if keep else [text.replace("_", " ")]
    table = str.maketrans("", "", string.punctuation)
    return re.sub(r"\s+", " ", keep.join(part.translate(table) for part in parts).lower()).strip()


# ------------------------------------------------------------------------------------------------- the tokenizers library


def _from_json(spec, length, path):
    from tokenizers import Tokenizer as Library

    try:
        library = Library.from_file(str(path))
    except Exception as error:  # the library has no class of its own
        raise UserError(f"tokenizer {spec!r}: {path} is not a file of the tokenizers library: {error}") from error
    return _library(spec, length, library)


def _library(spec, length, library):
    """A tokenizers.Tokenizer, cut and padded on the right to `length` whatever its file says of lengths."""
    padding = library.padding or {}
    known = [library.token_to_id(token) for token in (BPE_PAD, "[PAD]")]
    pad = padding.get("pad_id", next((i for i in known if i is not None), PAD))
    library.no_padding()
    marks = library.num_special_tokens_to_add(False)
    if length <= marks:
        raise UserError(f"tokenizer {spec!r}: a text length of {length} leaves no room beside the {marks} marks that the file adds")
    library.enable_truncation(length)  # marks included: they are kept
    vocab_size = 1 + max(library.get_vocab(with_added_tokens=True).values())
    encode = lambda texts: [e.ids for e in library.encode_batch_fast(texts)]  # noqa: E731
    spell = lambda ids: library.decode(ids, skip_special_tokens=True).strip()  # noqa: E731
    return Tokenizer(spec, length, vocab_size, encode, end=None, pad=pad, spell=spell)


def _bpe(spec, length, size, captions):
    _check_size(size)
    if captions is None:
        raise UserError(f"tokenizer {spec!r} is trained on captions: name their data source, bpe:{size}:SOURCE, e.g. bpe:512:scenes/photo")
    return _library(spec, length, train_bpe(captions, size))


def train_bpe(captions, size):
    """A byte-level byte-pair encoding (Sennrich et al. 2016) of lower-cased captions: a tokenizers.Tokenizer of at most `size` tokens.

    Id 0 is <pad>; the greatest is <end>, which ends every text, so that CLIP's pooling at the greatest id finds it. The same captions,
    in any order, give the same file (`.save(path)`, read again by tokenizers:PATH). Raises UserError for size under 258, the bytes and
    the marks.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    _check_size(size)
    library = Library(models.BPE())
    library.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=int(size) - 1,
        special_tokens=[BPE_PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(list(captions), trainer)
    library.add_special_tokens([BPE_END])
    library.post_processor = processors.TemplateProcessing(single=f"$A {BPE_END}", special_tokens=[(BPE_END, library.token_to_id(BPE_END))])
    library.enable_padding(pad_id=0, pad_token=BPE_PAD)
    return library


def _check_size(size):
    if not str(size).isdigit() or int(size) < 258:
        raise UserError(f"tokenizer bpe:{size}: the vocabulary must be a number of 258 or more: 256 bytes, padding and the end")
