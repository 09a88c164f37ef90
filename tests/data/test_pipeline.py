"""Batches: stateless order, draws that belong to an example, the crop law, broken images, filling, prefetch."""

import io
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from ssljax.data import pipeline, sources, text
from ssljax.errors import UserError

quick = pytest.mark.quick
VIEWS = {"views": {"count": 2, "size": 12, "scale": (0.2, 1.0)}, "crops": {"count": 3, "size": 8, "scale": (0.05, 0.3), "flip": 0.0}}


@pytest.fixture(scope="module")
def tf():
    return sources.import_tensorflow()


def smooth(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def jpegs(n):
    image = {"height": (20, 40), "width": (20, 40)}
    return sources.synthetic({"image": image, "label": {"classes": 5}, "caption": {"words": (1, 3)}}, n)


def take(batches, k):
    return [next(batches) for _ in range(k)]


def joined(parts):
    """Batches of several processes -> the global batch."""
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


# ---------------------------------------------------------------------------------------------------------------- order


def test_order_is_index_shuffle_and_every_epoch_a_permutation(tf):
    source = sources.arrays({"image": np.zeros((37, 4, 4, 3), np.uint8)})
    batches = take(pipeline.train_batches(source, batch=10, seed=3, crop="device"), 12)
    ids, epochs = (np.concatenate([b[key] for b in batches]) for key in ("id", "epoch"))
    offset, last = (lambda p: tf.constant(p % 37, tf.int64)), tf.constant(36, tf.int64)
    expected = [int(tf.random.experimental.index_shuffle(offset(p), [3, p // 37], last)) for p in range(120)]
    assert ids.tolist() == expected and epochs.tolist() == [p // 37 for p in range(120)]
    for epoch in range(3):
        assert sorted(ids[epochs == epoch]) == list(range(37))
    assert not np.array_equal(ids[:37], ids[37:74])


@pytest.mark.parametrize(("crop", "counts"), [("host", (2,)), ("device", (2, 4))])
def test_same_batches_on_any_processes_and_after_a_restart(crop, counts):
    settings = dict(batch=8, seed=1, crop=crop, views=VIEWS, image_size=16, tokenizer=text.make("bytes", 9))
    source = jpegs(22)
    whole = take(pipeline.train_batches(source, **settings), 5)
    for count in counts:
        parts = [pipeline.train_batches(source, **settings, process_index=i, process_count=count) for i in range(count)]
        for batch in whole:
            same(joined([next(p) for p in parts]), batch)
    restarted = list(pipeline.train_batches(source, **settings, start_step=2, steps=3))
    for batch, wanted in zip(restarted, whole[2:], strict=True):
        same(batch, wanted)


def test_the_format_of_a_batch():
    source = jpegs(10)
    batch = next(pipeline.train_batches(source, batch=6, seed=0, views=VIEWS, tokenizer=text.make("words:64", 5)))
    assert {key: (v.shape, v.dtype.name) for key, v in batch.items()} == {
        "views": ((6, 2, 12, 12, 3), "uint8"), "crops": ((6, 3, 8, 8, 3), "uint8"), "id": ((6,), "int32"), "epoch": ((6,), "int32"),
        "valid": ((6,), "bool"), "label": ((6,), "int32"), "text": ((6, 5), "int32"),
    }  # fmt: skip
    records = source.__getitems__(batch["id"])
    assert batch["label"].tolist() == [r["label"] for r in records]
    assert batch["text"].tolist() == text.make("words:64", 5)([r["caption"] for r in records]).tolist()


def test_draws_belong_to_the_example_not_to_its_batch():
    source = jpegs(16)
    by_id = {}
    for size in (4, 16):
        for batch in pipeline.train_batches(source, batch=size, seed=0, views=VIEWS, steps=32 // size):
            for row in range(size):
                key = (batch["id"][row], batch["epoch"][row])
                one = (batch["views"][row].tobytes(), batch["crops"][row].tobytes())
                assert by_id.setdefault(key, one) == one
    assert len(by_id) == 32
    assert all(by_id[i, 0] != by_id[i, 1] for i in range(16))  # another epoch, other draws
    batch = next(pipeline.train_batches(source, batch=16, seed=0, views=VIEWS))
    assert (batch["views"][:, 0] != batch["views"][:, 1]).any(axis=(1, 2, 3)).all()


def test_another_count_of_views_leaves_the_first_ones_alone():
    source = sources.arrays({"image": np.stack([smooth(24, 30, i) for i in range(4)])})
    few, many = (next(pipeline.train_batches(source, batch=4, seed=0, views={"views": {"count": c, "size": 10}}))["views"] for c in (1, 3))
    np.testing.assert_array_equal(few[:, 0], many[:, 0])


# ------------------------------------------------------------------------------------------------------------- geometry


def law(rng, height, width, scale, ratio):
    """torchvision's RandomResizedCrop.get_params, one box: (top, left, height, width)."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
        w, h = int(round(np.sqrt(area * aspect))), int(round(np.sqrt(area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = int(round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = int(round(height * ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(("size", "scale", "ratio"), [((60, 90), (0.08, 1.0), (3 / 4, 4 / 3)), ((50, 20), (0.3, 0.9), (0.5, 2.0))])
def test_crop_law(tf, size, scale, ratio):
    n, group = 20000, {"count": 20000, "scale": scale, "ratio": ratio, "flip": 0.3}
    corners, sizes, flips = (x.numpy() for x in pipeline._boxes(tf, [1, 2], tf.constant(size), group))
    rng = np.random.default_rng(0)
    expected = np.array([law(rng, *size, scale, ratio) for _ in range(n)])
    assert (corners >= 0).all() and (corners + sizes <= size).all() and (sizes > 0).all()
    assert abs(flips.mean() - 0.3) < 0.015
    for got, want in [
        (sizes[:, 0] * sizes[:, 1], expected[:, 2] * expected[:, 3]),
        (sizes[:, 1] / sizes[:, 0], expected[:, 3] / expected[:, 2]),
        (corners[:, 0], expected[:, 0]),
        (corners[:, 1] + sizes[:, 1], expected[:, 1] + expected[:, 3]),
    ]:
        # Two-sample Kolmogorov-Smirnov distance; its 0.1 % point is 1.95 * sqrt(2 / n).
        at = np.unique(np.concatenate([got, want]))
        distance = np.abs(np.searchsorted(np.sort(got), at, "right") - np.searchsorted(np.sort(want), at, "right")).max() / n
        assert distance < 1.95 * np.sqrt(2 / n)


@pytest.mark.parametrize(("size", "box"), [((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10)), ((30, 33), (0, 0, 30, 33))])
def test_crop_falls_back_to_the_centre(tf, size, box):
    # No box of 200 % of the area fits: the group is not checked here.
    group = {"count": 2, "scale": (2.0, 2.0), "ratio": (3 / 4, 4 / 3), "flip": 0}
    corners, sizes, _ = pipeline._boxes(tf, [1, 2], tf.constant(size), group)
    assert [*corners[0].numpy(), *sizes[0].numpy()] == list(box)


@pytest.mark.parametrize("size", [(9, 9), (40, 40), (20, 64), (64, 21)])
def test_resize_is_bilinear_with_antialiasing(tf, size):
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    got = pipeline._uint8(tf, pipeline._resize(tf, tf.constant(image), list(size))).numpy()
    want = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))  # Pillow widens its filter the same way
    assert np.abs(got.astype(int) - want).max() <= 1


def bilinear(image, size):
    """Independent float64 bilinear, half-pixel centres, edges repeated."""
    for axis, n in enumerate(size):
        at = (np.arange(n) + 0.5) * image.shape[axis] / n - 0.5
        low = np.floor(at)
        weight = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        low, high = (np.clip(low + k, 0, image.shape[axis] - 1).astype(int) for k in (0, 1))
        image = image.take(low, axis) * (1 - weight) + image.take(high, axis) * weight
    return image


def reduced(image, size):
    """What a view is: sides more than 2.25 times too long are halved, then bilinear."""
    half = tuple((side + 1) // 2 if side > 2.25 * n else side for side, n in zip(image.shape, size, strict=False))
    return bilinear(bilinear(image.astype(np.float64), half), size)


def test_views_do_not_alias(tf):
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2] = 255  # the finest detail there is: reduced by three or five it is grey, unless columns are skipped
    for size in (32, 19):
        got = pipeline._resize_fast(tf, tf.constant(stripes), [size, size], tf.constant(True)).numpy()[:, 2:-2]
        assert np.abs(got - 127.5).max() < 10
        assert np.ptp(bilinear(stripes.astype(float), (size, size))) > 100


@pytest.mark.parametrize("encoding", ["png", "jpeg", "array"])
def test_views_are_the_boxes_resized_and_flipped(tf, encoding):
    image = smooth(60, 80)
    if encoding == "jpeg":
        image = np.asarray(Image.open(io.BytesIO(sources.encode_image(image, "jpeg"))))
    given = tf.constant(image if encoding == "array" else sources.encode_image(smooth(60, 80), encoding))
    group = {"count": 8, "size": 16, "scale": (0.1, 0.8), "ratio": (3 / 4, 4 / 3), "flip": 0.5, "boxes": True}
    out = pipeline._views(tf, given, {"views": group}, (5, tf.constant(2), tf.constant(7)))
    views, places = out["views"].numpy(), out["views_box"].numpy()
    seed = tf.constant([5, 2], tf.int64)
    for data in (7, zlib.crc32(b"views") >> 1):
        seed = tf.random.experimental.stateless_fold_in(seed, tf.constant(data, tf.int64))
    corners, sizes, flips = (x.numpy() for x in pipeline._boxes(tf, seed, tf.constant([60, 80]), group))
    assert 0 < flips.sum() < 8
    for view, place, (top, left), (h, w), flip in zip(views, places, corners, sizes, flips, strict=True):
        x0, x1 = (left + w, left) if flip else (left, left + w)
        np.testing.assert_allclose(place, [top / 60, x0 / 80, (top + h) / 60, x1 / 80], rtol=1e-6)
        want = reduced(image[top : top + h, left : left + w], (16, 16))
        error = np.abs(view.astype(int) - (want[:, ::-1] if flip else want))
        assert error.max() <= (6 if encoding == "jpeg" else 1)  # a partial decode differs at its rim, where chroma is interpolated


def test_whole_images_are_resized_by_the_short_side_and_centred(tf):
    image = smooth(30, 60)
    for ratio, big in ((1.0, (16, 32)), (1.25, (20, 40))):
        got = pipeline._whole(tf, tf.constant(sources.encode_image(image, "png")), (16, 16), ratio).numpy()
        want = np.asarray(Image.fromarray(image).resize(big[::-1], Image.Resampling.BILINEAR))
        low = [(b - 16) // 2 for b in big]
        assert np.abs(got.astype(int) - want[low[0] : low[0] + 16, low[1] : low[1] + 16]).max() <= 1
    np.testing.assert_array_equal(pipeline._whole(tf, tf.constant(image), (30, 60)).numpy(), image)


# ---------------------------------------------------------------------------------------------------------- what can fail


def write(path, image, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **kw)


@pytest.mark.parametrize("crop", ["host", "device"])
def test_a_broken_image_is_masked_and_moves_nothing(tmp_path, crop):
    for i in range(24):
        suffix = ("jpg", "png", "bmp", "webp")[i % 4]
        write(tmp_path / "all" / "good" / ("ab"[i % 2]) / f"{i:02d}.{suffix}", smooth(20 + i, 30, i))
    good = tmp_path / "all" / "good"
    files = sorted(good.rglob("*.*"))
    settings = dict(batch=6, seed=4, crop=crop, views=VIEWS, image_size=16, steps=8)
    before = list(pipeline.train_batches(sources.open(f"folder:{good}", "all"), **settings))
    assert all(b["valid"].all() for b in before)

    truncated = next(f for f in files if f.suffix == ".jpg")
    truncated.write_bytes(truncated.read_bytes()[:200])
    files[5].write_bytes(b"")
    files[9].write_bytes(b"no image at all")
    broken = {files.index(truncated), 5, 9}
    batches = pipeline.train_batches(sources.open(f"folder:{good}", "all"), **settings)
    after = list(batches)
    for a, b in zip(after, before, strict=True):
        for key in ("id", "epoch", "label"):
            np.testing.assert_array_equal(a[key], b[key])
        assert a["valid"].tolist() == [i not in broken for i in a["id"]]
        for key in {"views", "crops", "image"} & a.keys():
            np.testing.assert_array_equal(a[key][a["valid"]], b[key][a["valid"]])
            assert not a[key][~a["valid"]].any()
    assert batches.broken == 6 and set(batches.broken_ids) == broken  # two epochs


def test_any_mode_of_image_is_read(tmp_path):
    grey = smooth(20, 24)[..., 0]
    write(tmp_path / "1.jpg", grey)
    write(tmp_path / "2.png", grey)
    write(tmp_path / "3.png", np.dstack([smooth(20, 24), np.full((20, 24), 90, np.uint8)]))
    write(tmp_path / "4.png", grey.astype(np.uint16) * 257)
    write(tmp_path / "5.webp", smooth(20, 24), lossless=True)
    Image.fromarray(smooth(20, 24)).convert("CMYK").save(tmp_path / "6.jpg")
    Image.fromarray(smooth(20, 24)).quantize(8).save(tmp_path / "7.png")
    write(tmp_path / "8.webp", np.dstack([smooth(20, 24), np.full((20, 24), 90, np.uint8)]), lossless=True, exact=True)
    write(tmp_path / "9.bmp", grey)
    source = sources.open(f"folder:{tmp_path}", "all")
    (batch,) = pipeline.eval_batches(source, batch=9, image_size=20)
    assert batch["valid"].all()
    for row, record in enumerate(source.__getitems__(range(9))):
        want = grey[..., None] if row == 3 else np.asarray(Image.open(io.BytesIO(record["image"])).convert("RGB"))
        # CMYK has no one right conversion; JPEG decoders differ by a rounding or two.
        assert np.abs(batch["image"][row].astype(int) - want[:, 2:22]).max() <= {0: 2, 5: 12}.get(row, 0), row


def test_a_source_that_raises_is_not_taken_for_a_broken_image():
    source = sources.Source("mine", 9, jpegs(9).fields, "0", lambda ids: 1 / 0)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        next(pipeline.train_batches(source, batch=3, seed=0, views=VIEWS))


@quick
def test_mistakes_are_named():
    source = sources.arrays({"image": np.zeros((5, 4, 4, 3), np.uint8), "label": np.arange(5)})
    good = dict(batch=4, seed=0, views=VIEWS)
    for wrong, message in [
        (dict(batch=3, process_count=2), "batch=3"),
        (dict(crop="gpu"), "data.crop='gpu'"),
        (dict(label="species"), "'species'.*label"),
        (dict(tokenizer=text.make("bytes", 4)), "data.caption='caption'.*none"),
        (dict(views={}), "augment.views.count"),
        (dict(views={"views": {"size": 4}}), "augment.views.count=None"),
        (dict(views={"views": {"count": 1, "size": 4, "scale": (0.5, 2.0)}}), r"scale=\(0\.5, 2\.0\)"),
    ]:
        with pytest.raises(UserError, match=message):
            pipeline.train_batches(source, **{**good, **wrong})
    with pytest.raises(UserError, match="data.image_size"):
        pipeline.train_batches(jpegs(4), batch=2, seed=0, crop="device")


# ------------------------------------------------------------------------------------------------------------ evaluation


def test_evaluation_sees_every_record_once_and_fills_up():
    source = jpegs(11)
    whole = list(pipeline.eval_batches(source, batch=4, image_size=8))
    assert [b["valid"].tolist() for b in whole] == [[True] * 4, [True] * 4, [True] * 3 + [False]]
    assert np.concatenate([b["id"] for b in whole]).tolist() == [*range(11), -1]
    assert not whole[-1]["image"][-1].any() and whole[0].keys() == {"image", "id", "valid", "label"}
    parts = [list(pipeline.eval_batches(source, batch=4, image_size=8, process_index=i, process_count=2)) for i in range(2)]
    for a, b, batch in zip(*parts, whole, strict=True):
        same(joined([a, b]), batch)


def test_evaluation_gives_further_labels():
    rows = {"image": np.zeros((3, 4, 4, 3), np.uint8), "label": np.array([2, 1, 0]), "colour": np.array([5, 6, 7])}
    (batch,) = pipeline.eval_batches(sources.arrays(rows), batch=4, image_size=4, label="colour", extra=("label",))
    assert batch["label"].tolist() == [2, 1, 0, -1]


# ---------------------------------------------------------------------------------------------------------- arrays, prefetch


@quick
def test_array_batches_keep_the_same_promises():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (21, 4, 4, 3), dtype=np.uint8)
    rows = {"image": image, "digit": rng.integers(0, 9, 21), "caption": [f"n{i}" for i in range(21)]}
    settings = dict(batch=8, seed=2, tokenizer=text.make("bytes", 6), label="digit")
    whole = take(pipeline.array_batches(rows, **settings), 6)
    ids, epochs = (np.concatenate([b[key] for b in whole]) for key in ("id", "epoch"))
    for epoch in (0, 1):
        assert sorted(ids[epochs == epoch]) == list(range(21))
    for batch in whole:
        np.testing.assert_array_equal(batch["image"], rows["image"][batch["id"]])
        np.testing.assert_array_equal(batch["label"], rows["digit"][batch["id"]])
        assert batch["text"].tolist() == text.make("bytes", 6)([rows["caption"][i] for i in batch["id"]]).tolist()
    same(next(pipeline.array_batches(rows, **settings, start_step=4)), whole[4])
    parts = [pipeline.array_batches(rows, **settings, process_index=i, process_count=4) for i in range(4)]
    same(joined([next(p) for p in parts]), whole[0])
    assert len(list(pipeline.array_batches(rows, **settings, steps=3))) == 3


@quick
def test_array_eval_batches_fill_up():
    rows = {"image": np.ones((5, 2, 2, 3), np.uint8), "label": np.arange(5)}
    whole = list(pipeline.array_eval_batches(rows, batch=4))
    assert [b["id"].tolist() for b in whole] == [[0, 1, 2, 3], [4, -1, -1, -1]]
    assert whole[1]["valid"].tolist() == [True, False, False, False] and not whole[1]["image"][1:].any()
    parts = [list(pipeline.array_eval_batches(rows, batch=4, process_index=i, process_count=2)) for i in range(2)]
    for a, b, batch in zip(*parts, whole, strict=True):
        same(joined([a, b]), batch)


@quick
def test_prefetch_runs_ahead_by_its_depth_and_stops():
    made, enough = [], threading.Event()

    def numbers():
        for i in range(100):
            made.append(i)
            if len(made) == 3:
                enough.set()
            yield i

    with pipeline.prefetch(numbers(), lambda x: x * 10, depth=3) as ahead:
        assert enough.wait(10) and made == [0, 1, 2]
        assert [next(ahead) for _ in range(4)] == [0, 10, 20, 30]
        assert ahead.stall_seconds >= 0 and len(made) <= 7
    with pytest.raises(StopIteration):
        next(ahead)
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]
    assert list(pipeline.prefetch(iter(range(5)), lambda x: x)) == [0, 1, 2, 3, 4]


@quick
def test_prefetch_counts_the_wait():
    gate = threading.Event()

    def slow():
        gate.wait(10)
        yield 1

    ahead = pipeline.prefetch(slow(), lambda x: x)
    threading.Timer(0.1, gate.set).start()
    assert next(ahead) == 1 and 0.05 < ahead.stall_seconds < 10


@quick
def test_prefetch_says_which_stage_it_waits_for(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pipeline, "time", type("Clock", (), {"perf_counter": staticmethod(lambda: now[0])}))

    def advance(seconds, value=None):
        now[0] += seconds
        return value

    busy = {"read": 6.0, "decode": 2.0}  # seconds in all threads: only their ratio counts
    ahead = pipeline.prefetch((advance(4.0, i) for i in range(5)), lambda x: advance(1.0, x), depth=9, busy=busy)
    assert list(ahead) == [0, 1, 2, 3, 4]
    assert ahead.stage_seconds == {"read": 15.0, "decode": 5.0, "transfer": 5.0}
    assert ahead.blame(0.5) == pytest.approx({"stall_read": 0.3, "stall_decode": 0.1, "stall_transfer": 0.1})
    assert sum(ahead.blame(0.5).values()) == 0.0  # nothing was done since


def test_batches_measure_reading_and_decoding():
    batches = pipeline.train_batches(jpegs(40), batch=8, seed=0, views=VIEWS)
    first = next(batches)
    assert "seconds" not in first and 0 < batches.busy["read"] < 60 and 0 < batches.busy["decode"] < 60
    before = dict(batches.busy)
    take(batches, 5)
    assert all(batches.busy[stage] > before[stage] for stage in before)


@quick
def test_prefetch_hands_over_exceptions_in_their_place():
    def failing():
        yield 1
        raise RuntimeError("disk gone")

    ahead = pipeline.prefetch(failing(), lambda x: x)
    assert next(ahead) == 1
    with pytest.raises(RuntimeError, match="disk gone"):
        next(ahead)
    with pytest.raises(ZeroDivisionError):
        list(pipeline.prefetch(iter([1, 0]), lambda x: 1 / x))
    with pytest.raises(UserError, match="data.prefetch=0"):
        pipeline.prefetch(iter([]), lambda x: x, depth=0)
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


@quick
def test_prefetch_stops_when_dropped():
    import itertools

    ahead = pipeline.prefetch(itertools.count(), lambda x: x)
    (thread,) = [t for t in threading.enumerate() if t.name == "prefetch"]
    next(ahead)
    del ahead
    thread.join(10)
    assert not thread.is_alive()
