"""Broken images: what can be shown is shown right; the rest is masked in its place, counted, named with its reason."""

import io
import json
import os
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ssljax.data import bad, images, pipeline, sources
from ssljax.errors import UserError

quick = pytest.mark.quick


def picture(seed=0, size=(24, 20)):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image, encoding, **kw):
    buffer = io.BytesIO()
    image.save(buffer, encoding, **kw)
    return buffer.getvalue()


def bomb():
    """A PNG of a hundred bytes that asks for 10 GB."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_bomb():
    data = bytearray(encoded(picture(), "jpeg"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(data)


def damaged_png():
    """A PNG whole at both ends and broken in between: only decoding finds that."""
    data = bytearray(encoded(picture(), "png"))
    at = data.index(b"IDAT") + 20
    data[at : at + 8] = bytes(8)
    return bytes(data)


JPEG, PNG, WEBP = (encoded(picture(), kind) for kind in ("jpeg", "png", "webp"))
BROKEN = {  # bytes (None: unreadable), words of the reason
    "empty": (b"", "empty file"),
    "text": (b"<html>404 not found</html>", "not an image"),
    "cut_jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "cut_header": (JPEG[:9], "cut short within its header"),
    "cut_png": (PNG[: len(PNG) // 2], "truncated|broken|cut"),
    "cut_webp": (WEBP[: len(WEBP) // 2], "decod|image|cut"),
    "bomb": (bomb(), "60000 x 60000 pixels, more than 64 mi"),
    "jpeg_bomb": (jpeg_bomb(), "65535 x 65535 pixels"),
    "damaged": (damaged_png(), "broken|bad|decod"),
    "unreadable": (None, "unreadable: no such file"),
}


@quick
@pytest.mark.parametrize("name", [name for name in BROKEN if name not in ("unreadable", "damaged")])
def test_reasons(name):
    data, words = BROKEN[name]
    same, reason = images.inspect(data)
    assert same == data

    assert re.search(words, reason.lower()), reason


@quick
def test_usual_files_pass_as_they_are():
    grey = picture().convert("L")
    for image, encoding in [(picture(), "jpeg"), (grey, "jpeg"), (picture(), "png"), (picture().convert("RGBA"), "png"), (grey, "png"),
                            (picture().quantize(7), "png"), (picture(), "webp"), (picture().resize((1, 1)), "jpeg")]:  # fmt: skip
        data = encoded(image, encoding)
        assert images.inspect(data) == (data, None)
    progressive = encoded(picture(), "jpeg", progressive=True)
    assert images.inspect(progressive) == (progressive, None)
    assert images.inspect(JPEG + b"appended by a camera" * 20)[1] is None


def test_what_is_unusual_is_shown_right():
    tf = sources.import_tensorflow()
    colours = picture()
    want = np.asarray(colours).astype(int)
    deep = Image.fromarray(np.asarray(colours.convert("L")).astype(np.uint16) * 257)
    cases = {
        "cmyk": (encoded(colours.convert("CMYK"), "jpeg", quality=100, subsampling=0), want, 6),
        "palette bmp": (encoded(colours.quantize(200), "bmp"), np.asarray(colours.quantize(200).convert("RGB")), 0),
        "palette png": (encoded(colours.quantize(200), "png"), np.asarray(colours.quantize(200).convert("RGB")), 0),
        "16 bit png": (encoded(deep, "png"), np.asarray(colours.convert("L").convert("RGB")), 0),
        "16 bit tiff": (encoded(deep, "tiff"), np.asarray(colours.convert("L").convert("RGB")), 0),
        "tiff named jpg": (encoded(colours, "tiff"), want, 0),
        "png with alpha": (encoded(colours.convert("RGBA"), "png"), want, 0),
        "grey with alpha": (encoded(colours.convert("LA"), "png"), np.asarray(colours.convert("L").convert("RGB")), 0),
        "one pixel": (encoded(Image.new("RGB", (1, 1), (10, 20, 30)), "png"), np.array([[[10, 20, 30]]]), 0),
        "gif": (encoded(colours.quantize(200), "gif"), np.asarray(colours.quantize(200).convert("RGB")), 0),
    }  # fmt: skip
    for name, (data, right, tolerance) in cases.items():
        data, reason = images.inspect(data)
        assert reason is None, name
        got = pipeline._decode(tf, tf.constant(data)).numpy().astype(int)
        assert got.shape == right.shape and np.abs(got - right).max() <= tolerance, name


@quick
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mutated_images_never_crash_the_front():
    rng = np.random.default_rng(0)
    kinds = [JPEG, PNG, WEBP, encoded(picture(), "webp", lossless=True), *(encoded(picture(), kind) for kind in ("bmp", "gif", "tiff"))]
    reasons = 0
    for i in range(10_000):
        data = bytearray(kinds[i % len(kinds)])
        for at in rng.integers(0, len(data), rng.integers(1, 9)):
            data[at // (8 if at % 2 else 1)] = rng.integers(256)
        data = bytes(data[: rng.integers(1, len(data) + 1)] if i % 2 else data)
        out, reason = images.inspect(data)
        assert isinstance(out, bytes) and (reason is None or (isinstance(reason, str) and out == data))
        reasons += reason is not None
    assert 1000 < reasons < 9000


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A folder of 1,000 small images, and one in which 30 of them, in ten ways, are broken. -> (good, broken, names)."""
    roots = [tmp_path_factory.mktemp(name) for name in ("good", "broken")]
    pool = [encoded(picture(i), ("jpeg", "png")[i % 2]) for i in range(20)]
    names = {}
    for i in range(1000):
        data, file = pool[i % 20], f"{i % 4}/{i:04d}.{('jpg', 'png')[i % 2]}"
        for root in roots:
            (root / file).parent.mkdir(exist_ok=True)
            (root / file).write_bytes(data)
    for k, i in enumerate(np.random.default_rng(1).permutation(1000)[:30].tolist()):
        file, name = f"{i % 4}/{i:04d}.{('jpg', 'png')[i % 2]}", list(BROKEN)[k % 10]
        names[file] = name
        (roots[1] / file).unlink()
        if BROKEN[name][0] is None:
            os.symlink(roots[1] / "nowhere", roots[1] / file)
        else:
            (roots[1] / file).write_bytes(BROKEN[name][0])
    return *roots, names


def test_thirty_broken_of_a_thousand_are_named_and_move_nothing(thousand, tmp_path):

    good, broken, names = thousand
    settings = dict(batch=50, seed=2, views={"views": {"count": 1, "size": 8}}, steps=20)
    before = list(pipeline.train_batches(sources.open(f"folder:{good}", "all"), **settings))
    examples = bad.BadExamples(tmp_path / "run" / "bad_examples.jsonl", share=0.05)
    batches = pipeline.train_batches(sources.open(f"folder:{broken}", "all"), **settings, bad=examples)
    after = list(batches)
    assert batches.broken == examples.count == 30 and examples.read == 1000
    for a, b in zip(after, before, strict=True):
        for key in ("id", "epoch", "label"):
            np.testing.assert_array_equal(a[key], b[key])
        np.testing.assert_array_equal(a["views"][a["valid"]], b["views"][a["valid"]])
        assert b["valid"].all() and not a["views"][~a["valid"]].any()
    rows = [json.loads(line) for line in (tmp_path / "run" / "bad_examples.jsonl").read_text().splitlines()]
    assert {row["file"] for row in rows} == set(names) and len(rows) == 30
    for row in rows:
        assert re.search(BROKEN[names[row["file"]]][1], row["reason"].lower()), (names[row["file"]], row)
    told = examples.news()
    assert len(told) == 11 and str(tmp_path / "run") in told[-1] and not examples.news()


def test_too_many_broken_images_stop_the_run(thousand, tmp_path):
    _, broken, _ = thousand
    examples = bad.BadExamples(tmp_path / "bad_examples.jsonl", share=0.02)
    batches = pipeline.train_batches(sources.open(f"folder:{broken}", "all"), batch=100, seed=2, crop="device", image_size=8, bad=examples)
    with pytest.raises(UserError, match=r"config\.data\.bad_share=0\.02.*bad_examples\.jsonl"):
        for _ in range(10):
            next(batches)
    assert examples.read >= bad.AFTER and examples.count > 0.02 * examples.read


def test_the_config_reaches_the_pipeline(thousand, tmp_path):
    from ssljax import config as configs
    from ssljax import inputs

    config = configs.shrink(configs.load("configs/simclr_resnet_scenes.py"))
    config.data.source, config.data.train, config.data.crop, config.data.bad_share = f"folder:{thousand[1]}", "all", "host", 0.0
    config.batch = 100
    built = configs.build(config)
    feed = inputs.train_batches(config, built, sources.open(config.data.source, "all"), None, 0, tmp_path)
    with pytest.raises(UserError, match="bad_share=0: .*bad_examples.jsonl"):
        for _ in range(10):
            next(feed)
    assert (tmp_path / "bad_examples.jsonl").exists()
    for key, wrong in {"prefetch": 0, "threads": -1, "bad_share": 1.5}.items():
        with pytest.raises(UserError, match=f"config.data.{key}={wrong}"):
            configs.build(configs.from_dict(configs.to_dict(config) | {"data": configs.to_dict(config)["data"] | {key: wrong}}))


@quick
def test_counting_across_restarts(tmp_path):
    path = tmp_path / "bad_examples.jsonl"
    first = bad.BadExamples(path, share=0.5)
    first.update([4, 4, 7], 100, lambda i: (f"f{i}", "torn"))
    path.write_text(path.read_text() + '{"id": 9, "fi')  # killed while writing
    second = bad.BadExamples(path, share=0.5)
    second.update([7], 100, lambda i: (f"f{i}", "torn"))
    lines = path.read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines[:2]] == [4, 7] and len(lines) == 3  # 7 is not listed again
    second.update([8] * 99, 99, lambda i: (f"f{i}", "torn"))  # 100 of 199: a small start means nothing
    assert second.count == 100 and second.listed == {4, 7, 8}
    with pytest.raises(UserError, match="200 of 300"):
        second.update([8] * 100, 101, lambda i: (f"f{i}", "torn"))
    with pytest.raises(UserError, match="cannot be written"):
        bad.BadExamples(tmp_path / "bad_examples.jsonl" / "x").update([1], 1, lambda i: ("f", "r"))
