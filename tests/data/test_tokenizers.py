"""Tokenizers: ids, end, padding, truncation; the same on every machine. Published ones against loops that are written here."""

import gzip
import json
import random
import types
import unicodedata

import numpy as np
import pytest

from ssljax import inputs
from ssljax.data import scenes_recipe, sources, text
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


@pytest.mark.parametrize("spec", ["byte", "words", "words:2", "words:x", "bytes:3", "clip", "tokenizers+pad:x", "sentencepiece+end:x"])
def test_unknown_specs(spec):
    with pytest.raises(UserError, match="words:V"):
        text.make(spec, 8)
    with pytest.raises(UserError, match="at least 2"):
        text.make("bytes", 1)


@pytest.fixture(scope="module")
def captions():
    return scenes_recipe.make("photo", "train", 400)["caption"]


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [("clip", "bpe_simple_vocab_16e6.txt.gz"), ("sentencepiece", "a SentencePiece model"), ("tokenizers", "JSON file")],
)
def test_a_missing_file_says_what_is_wanted(spec, wanted, tmp_path):
    with pytest.raises(UserError, match=f"no file {tmp_path}.*{wanted}.*nothing is downloaded"):
        text.make(f"{spec}:{tmp_path / 'missing'}", 8)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\x1f\x8bbroken", b"\xff\xfe\x00\x01" * 9, b"header\none two three\n", b"header\nab cd\n"]
)
@pytest.mark.parametrize("spec", ["clip", "sentencepiece", "tokenizers"])
def test_a_file_of_another_kind_is_named(spec, content, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} is (not|damaged)"):
        text.make(f"{spec}:{path}", 8)


# ------------------------------------------------------------------------------------------------------------------ CLIP


def learn_merges(texts, count):
    """Byte-pair encoding by its definition (Sennrich et al. 2016): the most frequent pair, again and again."""
    letters = text.byte_alphabet()
    words = [[letters[b] for b in word.encode()] for line in texts for word in line.split()]
    words = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    for _ in range(count):
        pairs = {}
        for word in words:
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] = pairs.get(pair, 0) + 1
        merges.append(max(sorted(pairs), key=pairs.get))
        words = [merge(word, merges[-1]) for word in words]
    return merges


def merge(word, pair):
    out, i = [], 0
    while i < len(word):
        both = tuple(word[i : i + 2]) == pair
        out.append("".join(pair) if both else word[i])
        i += 2 if both else 1
    return out


class PlainClip:
    """CLIP's tokenizer letter by letter (openai/CLIP, simple_tokenizer.py): no regex, no library."""

    def __init__(self, merges):
        # Bytes that are visible in Latin-1 stand for themselves, the others for U+0100 and on.
        visible = [b for b in range(256) if 33 <= b <= 126 or (161 <= b <= 255 and b != 173)]
        hidden = [b for b in range(256) if b not in visible]
        self.letter = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}
        letters = [self.letter[b] for b in visible + hidden]
        tokens = letters + [x + "</w>" for x in letters] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
        self.id, self.merges, self.size = {t: i for i, t in enumerate(tokens)}, merges, len(tokens)

    def words(self, line):
        """The regex's alternatives, tried in turn at each place."""

        def kind(c):
            return "space" if c.isspace() else {"L": "letter", "N": "number"}.get(unicodedata.category(c)[0], "other")

        while line:
            special = [w for w in ("<|startoftext|>", "<|endoftext|>", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if line.startswith(w)]
            end = 1
            if special:
                end = len(special[0])
            elif kind(line[0]) in ("letter", "other"):
                while end < len(line) and kind(line[end]) == kind(line[0]):
                    end += 1
            if kind(line[0]) != "space":
                yield line[:end]
            line = line[end:]

    def __call__(self, line):
        for word in self.words(line):
            if word in ("<|startoftext|>", "<|endoftext|>"):
                yield self.id[word]
                continue
            pieces = [self.letter[b] for b in word.encode()]
            pieces[-1] += "</w>"
            while True:
                ranked = [self.merges.index(p) for p in zip(pieces, pieces[1:], strict=False) if p in self.merges]
                if not ranked:
                    break
                pieces = merge(pieces, self.merges[min(ranked)])
            yield from (self.id[p] for p in pieces)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory, captions):
    merges = learn_merges([*captions[:150], "it's café naïve 日本語 we'll don't"] * 2, 120)
    path = tmp_path_factory.mktemp("clip") / text.CLIP_FILE
    path.write_bytes(gzip.compress(("version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n").encode()))
    return path, PlainClip(merges)


def test_clip_is_the_plain_loop(clip_file, captions):
    path, plain = clip_file
    tokenizer = text.make(f"clip:{path}", 77)
    assert tokenizer.vocab_size == plain.size == 512 + 120 + 2
    rng = random.Random(0)
    alphabet = "aabcdeeesttr  '''<|>.,!?0129½Ⅳñé日本語ß😀\u0301_-"
    noise = ["".join(rng.choices(alphabet, k=rng.randrange(30))) for _ in range(200)]
    marks = ["a <|endoftext|> b", "<<|endoftext|>", "x<|startoftext|>'s", "we'll don't they're i'm i've he'd it's'"]
    lines = [*captions[:100], *noise, *marks]
    for line, got in zip(lines, tokenizer(lines), strict=True):
        ids = [plain.size - 2, *plain(text.clean_for_clip(line)), plain.size - 1]
        assert got.tolist() == (ids + [0] * 77)[:77], line


def test_clip_cleans_cuts_and_pads(clip_file, tmp_path):
    path, plain = clip_file
    start, end = plain.size - 2, plain.size - 1
    tokenizer = text.make(f"clip:{path}", 6)
    words = list(plain("a red"))
    for same in ("A  RED", " a&#32;red \n", "a&amp;#32;red", "A\u00a0Red"):
        assert tokenizer([same])[0].tolist() == ([start, *words, end] + [0] * 6)[:6], same
    # Repaired, unescaped twice and lower-cased, by hand.
    assert text.clean_for_clip("CafÃ© &amp;lt;b&amp;gt;  “It’s”\r\n") == 'café <b> "it\'s"'
    assert text.clean_for_clip("<I> &amp;lt;") == "<i> <"
    rows = tokenizer(["red " * 20, ""])
    assert rows.dtype == np.int32 and rows[0].tolist() == [start, *list(plain("red " * 20))[:4], end]
    assert rows[1].tolist() == [start, end, 0, 0, 0, 0]
    assert (rows.argmax(1) == [5, 1]).all()  # CLIP pools at the greatest id
    # The file unpacked, and its folder, are the same tokenizer.
    (tmp_path / "merges.txt").write_bytes(gzip.decompress(path.read_bytes()))
    for other in (tmp_path / "merges.txt", path.parent):
        np.testing.assert_array_equal(text.make(f"clip:{other}", 6)(["red " * 20, ""]), rows)


# --------------------------------------------------------------------------------------------------------- SentencePiece


def train_sentencepiece(prefix, captions, **settings):
    import sentencepiece

    settings = dict(vocab_size=90, bos_id=-1, hard_vocab_limit=False, minloglevel=2) | settings
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(captions), model_prefix=str(prefix), **settings)
    return f"{prefix}.model"


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory, captions):
    return train_sentencepiece(tmp_path_factory.mktemp("sentencepiece") / "tiny", captions, pad_id=0, eos_id=1, unk_id=2)


def test_sentencepiece_follows_big_visions_sticky_rule(sentencepiece_file):
    import sentencepiece

    library = sentencepiece.SentencePieceProcessor(model_file=sentencepiece_file)
    tokenizer = text.make(f"sentencepiece:{sentencepiece_file}", 8)
    assert tokenizer.vocab_size == library.get_piece_size()
    texts = ["a Red seven", "", "a small purple three at the bottom right on motorcycle", "A É!"]
    rows = tokenizer(texts)
    assert rows.dtype == np.int32
    for got, line in zip(rows, ["a red seven", "", texts[2], "a É!"], strict=True):  # ASCII letters alone are lower-cased
        tokens = library.encode(line) + [1]
        # ops_text.tokenize: the first 7 and the last of 8 or more, else padded with pad_value=1
        expected = tokens[:7] + tokens[-1:] if len(tokens) >= 8 else tokens + [1] * (8 - len(tokens))
        assert got.tolist() == expected
    padded = text.make(f"sentencepiece+pad:{sentencepiece_file}", 8)(["red", texts[2]])
    ids = library.encode("red") + [1]
    assert padded[0].tolist() == ids + [0] * (8 - len(ids)) and padded[1].tolist() == rows[2].tolist()
    canonical = text.make(f"sentencepiece+canonical:{sentencepiece_file}", 8)
    assert canonical(["A_red,  SEVEN!"]).tolist() == tokenizer(["a red seven"]).tolist() != tokenizer(["A_red,  SEVEN!"]).tolist()


def test_canonical_texts():
    assert text.canonicalize(" A_photo, of\tthe “Cat's”... ") == "a photo of the “cats”"
    assert text.canonicalize("A photo of {}, {now}.", keep="{}") == "a photo of {} now"


def test_a_sentencepiece_model_without_an_end_is_refused(tmp_path, captions):
    path = train_sentencepiece(tmp_path / "endless", captions, eos_id=-1)
    with pytest.raises(UserError, match="no token for an end.*--eos_id=1"):
        text.make(f"sentencepiece:{path}", 8)


# ------------------------------------------------------------------------------------------------- the tokenizers library


def test_a_json_file_speaks_for_itself(tmp_path, captions):
    """BERT's kind: marks at both ends, kept when a text is cut; [PAD] at an id of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = sorted({word for line in captions for word in line.split()})
    vocabulary = {token: i for i, token in enumerate(["[UNK]", *words, "[CLS]", "[SEP]", "[PAD]"])}
    library = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.add_special_tokens(["[CLS]", "[SEP]", "[PAD]"])
    marks = [(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")]
    library.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    library.save(str(tmp_path / "plain.json"))
    library.enable_truncation(512)
    library.enable_padding(length=512, pad_id=3, direction="left")  # lengths and sides of a file are another model's, its pad_id counts
    library.save(str(tmp_path / "padded.json"))

    lines = ["a red seven", "a small red seven on gravel", ""]
    cls, sep = vocabulary["[CLS]"], vocabulary["[SEP]"]
    for name, pad in {"plain": vocabulary["[PAD]"], "padded": 3}.items():
        tokenizer = text.make(f"tokenizers:{tmp_path / name}.json", 6)
        rows = tokenizer(lines)
        assert rows.dtype == np.int32 and rows.shape == (3, 6) and tokenizer.vocab_size == len(vocabulary)
        for got, line in zip(rows, lines, strict=True):
            ids = [cls, *[vocabulary.get(word, 0) for word in line.split()][:4], sep]
            assert got.tolist() == ids + [pad] * (6 - len(ids))
        with pytest.raises(UserError, match="length of 2 leaves no room beside the 2 marks"):
            text.make(f"tokenizers:{tmp_path / name}.json", 2)


def test_bpe_is_the_same_for_the_same_captions(captions, tmp_path):
    tokenizer, library = text.make("bpe:300", 48, captions=captions), text.train_bpe(captions, 300)
    assert tokenizer.vocab_size == 300
    shuffled = random.Random(1).sample(captions, len(captions))
    assert library.to_str() == text.train_bpe(iter(shuffled), 300).to_str()
    lines = [*captions, "Ünknown 字"]
    rows = tokenizer(lines)
    assert rows.dtype == np.int32 and rows.shape == (len(lines), 48)
    assert ((rows == 299).sum(1) == 1).all()  # <end>, the greatest id, once
    assert ((rows == 0) == (np.arange(48) > rows.argmax(1)[:, None])).all()  # <pad> behind it, and nowhere else
    assert library.decode_batch(rows.tolist()) == [" " + line.lower() for line in lines]  # nothing is lost
    assert tokenizer(["A RED seven"]).tolist() == tokenizer(["a red SEVEN"]).tolist()
    line = "a small red seven on gravel"
    assert text.make("bpe:300", 4, captions=captions)([line])[0].tolist() == [*tokenizer([line])[0, :3], 299]
    library.save(str(tmp_path / "bpe.json"))
    np.testing.assert_array_equal(text.make(f"tokenizers:{tmp_path / 'bpe.json'}", 48)(captions), tokenizer(captions))


def test_bpe_merges_the_most_frequent_pairs():
    vocabulary = text.train_bpe(["zqzq zqzq zqzq kx kx"], 262).get_vocab()
    # " zqzq" three times, " kx" twice. Pairs: zq 6 times; then zq zq 3 times, " " zq 3 times.
    assert vocabulary["zq"] == 257 and {"zqzq", "Ġzqzq"} & set(vocabulary) and "Ġkx" not in vocabulary


def test_bpe_refuses():
    for spec in ("bpe:257", "bpe:many", "bpe:many:scenes/photo"):
        with pytest.raises(UserError, match="258 or more"):
            text.make(spec, 8, captions=["a"])
    with pytest.raises(UserError, match="bpe:512:SOURCE, e.g. bpe:512:scenes/photo"):
        text.make("bpe:512", 8)


def test_a_config_trains_its_bpe_on_the_source_that_it_names(monkeypatch):
    source = "synthetic:n=64,height=8,width=8,words=3-8"
    data = types.SimpleNamespace(tokenizer=f"bpe:300:{source}", caption="caption", source="folder:elsewhere", train="train", knowledge="")
    tower = types.SimpleNamespace(length=20, vocab_size=300)
    built = types.SimpleNamespace(data=data, method=types.SimpleNamespace(text=tower))
    records = sources.open(source, "train").__getitems__(range(64))
    again = text.make("bpe:300", 20, captions=[record["caption"] for record in records])
    assert inputs.make_tokenizer(built)(["word12 word7"]).tolist() == again(["word12 word7"]).tolist()

    data.tokenizer, tower.vocab_size = "bpe:500:scenes/photo", 500
    monkeypatch.setattr(sources, "open", None)  # which would import TensorFlow
    assert np.count_nonzero(inputs.make_tokenizer(built)(["gravel"])) == 2  # a word of the embedded captions is one token, then the end
    data.caption = "title"
    with pytest.raises(UserError, match="no text 'title'; it has caption"):
        inputs.make_tokenizer(built)
    data.tokenizer, data.caption, tower.vocab_size = "bytes", "caption", 257
    with pytest.raises(UserError, match="258 ids.*257 is fewer"):
        inputs.make_tokenizer(built)


@pytest.mark.parametrize("kind", ["bytes", "words:4096", "bpe:300", "clip", "sentencepiece"])
def test_ids_are_spelt_again(kind, captions, clip_file, sentencepiece_file):
    spec = {
        "clip": f"clip:{clip_file[0] if isinstance(clip_file, tuple) else clip_file}",
        "sentencepiece": f"sentencepiece:{sentencepiece_file}",
    }
    tokenizer = text.make(spec.get(kind, kind), 120, captions=captions)
    some = [caption.lower() for caption in captions[:50]]
    squeeze = lambda texts: [" ".join(t.replace(",", " ,").split()) for t in texts]  # noqa: E731 (white space is not kept by all)
    assert squeeze(tokenizer.decode(tokenizer(some), captions=captions)) == squeeze(some)


def test_words_that_no_caption_has_are_spelt_as_unknown():
    tokenizer = text.make("words:4096", 6)
    assert tokenizer.decode(tokenizer(["a red zebra"]), captions=["a red seven"]) == ["a red ?"]
    assert tokenizer.decode(np.zeros((1, 6), int), captions=["a"]) == [""]


def test_knowledge_of_its_words_is_added_to_a_text(tmp_path):
    path = tmp_path / "knowledge.json"
    path.write_text(json.dumps({"gravel": "small loose stones", "red": "a colour", "red gravel": "crushed brick"}))
    plain = text.make("words:4096", 16)
    told = text.with_knowledge(plain, str(path))
    rows = told(["A red seven on gravel", "on red gravel", "nothing, gravelly", "red, red"])
    expected = ["A red seven on gravel, red: a colour, gravel: small loose stones", "on red gravel, red gravel: crushed brick",
                "nothing, gravelly", "red, red, red: a colour"]  # fmt: skip
    np.testing.assert_array_equal(rows, plain(expected))
    for content, says in (("[1]", "one JSON object"), ("{", "is no JSON"), ('{"a": 1}', "of strings")):
        path.write_text(content)
        with pytest.raises(UserError, match=says):
            text.with_knowledge(plain, str(path))
    with pytest.raises(UserError, match="there is no file"):
        text.with_knowledge(plain, str(tmp_path / "missing.json"))
