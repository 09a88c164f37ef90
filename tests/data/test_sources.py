"""Sources: records by id, splits as TFDS spells them, fingerprints, and mistakes told by name."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ssljax.data import scenes_recipe, sources
from ssljax.errors import UserError

quick = pytest.mark.quick


def picture(path, value, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for name, values in {"cat": range(6), "dog": range(6, 16), "emu": range(16, 20)}.items():
        for v in values:
            picture(tmp_path / "animals" / name / f"{v:02d}.png", v)
    (tmp_path / "animals" / "notes.txt").write_text("not an image")
    return tmp_path / "animals"


def values(source):
    """The first pixel of each (encoded) image of a source."""
    import io

    return [np.asarray(Image.open(io.BytesIO(r["image"])))[0, 0, 0].item() for r in source.__getitems__(range(len(source)))]


@quick
def test_folder_of_classes(folder):
    source = sources.open(f"folder:{folder}", "all")
    assert len(source) == 20 and source.fields["label"].classes == ("cat", "dog", "emu")
    assert values(source) == list(range(20))
    assert [r["label"] for r in source.__getitems__([0, 6, 19, 6])] == [0, 1, 2, 1]


@quick
def test_folder_without_a_test_part_holds_out_a_tenth(folder):
    train, test = (values(sources.open(f"folder:{folder}", split)) for split in ("train", "test"))
    assert len(train) == 18 and sorted(train + test) == list(range(20))
    first, rest = (values(sources.open(f"folder:{folder}", split)) for split in ("train[:50%]", "train[50%:]"))
    assert len(first) == 9 and sorted(first + rest) == sorted(train)
    assert values(sources.open(f"folder:{folder}", "train+test")) == train + test
    labels = [r["label"] for r in sources.open(f"folder:{folder}", "all[:50%]").__getitems__(range(10))]
    assert len(set(labels)) > 1  # a slice is no run of one class


@quick
def test_folder_with_its_own_test_part(tmp_path):
    for part, names in {"train": ["b", "a"], "val": ["a", "c"]}.items():
        for i, name in enumerate(names):
            picture(tmp_path / part / name / "x.jpg", 10 * i)
    train, test, validation = (sources.open(f"folder:{tmp_path}", s) for s in ("train", "test", "validation"))
    assert [len(train), len(test)] == [2, 2] and test.fingerprint == validation.fingerprint != train.fingerprint
    assert train.fields["label"].classes == ("a", "b", "c")
    assert [r["label"] for r in test.__getitems__([0, 1])] == [0, 2]


@quick
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_captions(tmp_path, form):
    for v in (3, 4, 5):
        picture(tmp_path / f"{v}.bmp", v)
    rows = [("4.bmp", 'a "grey", square'), ("3.bmp", "dark"), ("4.bmp", "another")]
    if form == "csv":
        lines = ["file,caption"] + ['{},"{}"'.format(f, c.replace('"', '""')) for f, c in rows]
    else:
        lines = [json.dumps({"file": f, "caption": c}) for f, c in rows]
    (tmp_path / f"captions.{form}").write_text("\n".join(lines))
    source = sources.open(f"folder:{tmp_path}", "all")
    assert [r["caption"] for r in source.__getitems__([0, 1, 2])] == ["dark", 'a "grey", square', "another"]
    assert values(source) == [3, 4, 4] and source.labels() == []
    (tmp_path / f"captions.{form}").write_text("\n".join(lines).replace("3.bmp", "9.bmp"))
    with pytest.raises(UserError, match=r"names 1 files.*9\.bmp"):
        sources.open(f"folder:{tmp_path}", "all")
    (tmp_path / f"captions.{form}").write_text("name,text\n4.bmp,x" if form == "csv" else '{"file": "4.bmp"}')
    with pytest.raises(UserError, match="`file` and `caption`"):
        sources.open(f"folder:{tmp_path}", "all")


@quick
def test_fingerprint_follows_the_content_not_the_place(folder, tmp_path):
    before = sources.open(f"folder:{folder}", "train").fingerprint
    moved = tmp_path / "elsewhere"
    os.rename(folder, moved)
    assert sources.open(f"folder:{moved}", "train").fingerprint == before
    picture(moved / "cat" / "00.png", 99, (33, 33))
    assert sources.open(f"folder:{moved}", "all").fingerprint != before


@quick
def test_mistakes_are_named(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    (tmp_path / "empty").mkdir()
    for spec, split, message in [
        (f"folder:{tmp_path}/none", "train", "no folder"),
        (f"folder:{tmp_path}/empty", "train", "no image"),
        (f"folder:{folder}", "trian", "no 'trian'"),
        (f"folder:{folder}", "train[10", "not understood"),
        ("scenes/poster", "train", "unknown"),
        ("tfds:scenes/poster", "train", "plain, photo"),
        ("scenes/plain", "validation", "it has test, train"),
        ("tfds:mnist", "train", "TFDS_DATA_DIR"),
        ("s3:bucket", "train", "unknown"),
        ("synthetic:sides=4", "train", "sides"),
        ("", "train", "not a spec"),
    ]:
        with pytest.raises(UserError, match=message):
            sources.check(spec, split)
        with pytest.raises(UserError, match=message):
            sources.open(spec, split)
    for good in ("scenes/plain", "tfds:scenes/photo"):
        sources.check(good, "train[:90%]+test")


@quick
def test_checking_needs_no_tensorflow(folder):
    code = f"""
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
from ssljax.data import pipeline, sources, text
sources.check("folder:{folder}", "train"); sources.check("scenes/photo", "test[:10%]")
print(len(sources.open("folder:{folder}", "train")), len(sources.scenes("plain", "test", 5)), len(sources.open("synthetic:n=4", "train")))
rows = sources.scenes("plain", "test", 9).__getitems__(range(9))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=os.getcwd())
    assert out.stdout.split() == ["18", "5", "4"], out.stderr


@quick
def test_slices_round_as_tfds_does():
    # tfds.core.splits: percentages round to the closest record, negatives count from the end.
    for split, n, expected in [
        ("train[:33%]", 10, (0, 3)),
        ("train[33%:67%]", 10, (3, 7)),
        ("train[-20%:]", 10, (8, 10)),
        ("train[2:-3]", 10, (2, 7)),
        ("train[:50%]", 5, (0, 2)),
        ("train", 7, (0, 7)),
    ]:
        ((_, low, high),) = sources.parse_split(split)
        assert sources.slice_bounds(low, high, n) == expected, split


@quick
def test_synthetic_records_depend_on_their_id_alone():
    features = {"image": {"height": (20, 40), "width": 30}, "label": {"classes": ["x", "y"]}, "caption": {"words": (2, 4)}}
    a, b = sources.synthetic(features, 10), sources.synthetic(features, 10)
    assert a.__getitems__([7, 2]) == [b.__getitems__([2])[0], b.__getitems__([7])[0]][::-1]
    assert a.fingerprint == b.fingerprint != sources.synthetic(features, 11).fingerprint
    assert {k: f.kind for k, f in a.fields.items()} == {"image": "image", "label": "label", "caption": "text"}
    part = sources.open("synthetic:n=10,height=8,width=8,classes=3", "train[80%:]")
    assert len(part) == 2 and part.fields["image"].shape == (8, 8, 3)


@quick
def test_arrays_and_subset():
    rows = {"image": np.arange(5 * 16, dtype=np.uint8).reshape(5, 4, 4), "label": np.array([0, 2, 1, 0, 2]), "caption": list("abcde")}
    source = sources.arrays(rows, name="mine")
    assert source.fields["image"].shape == (4, 4, 3) and len(source.fields["label"].classes) == 3
    (record,) = source.__getitems__([3])
    assert record["label"] == 0 and record["caption"] == "d" and np.array_equal(record["image"][..., 2], rows["image"][3])
    assert sources.arrays({**rows, "label": rows["label"][::-1]}).fingerprint != source.fingerprint
    few = sources.subset(source, 3)
    assert len(few) == 3 and sources.subset(source, 0) is source
    assert {r["caption"] for r in few.__getitems__(range(3))} < set("abcde")
    with pytest.raises(UserError, match="uint8"):
        sources.arrays({"image": np.zeros((2, 4, 4, 3))})


# ------------------------------------------------------------------------------------------------------- with TensorFlow

FEW = {"train": 48, "test": 12}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data directory that two processes filled with both configs at the same time."""
    where = tmp_path_factory.mktemp("tfds")
    code = f"""
from ssljax.data import scenes_recipe
scenes_recipe.COUNTS.update({FEW})
from ssljax.data import scenes
for config in ("plain", "photo"):
    scenes.prepare(config, {str(where)!r})
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [p.communicate()[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], errors
    return where


@pytest.mark.parametrize("config", ["plain", "photo"])
def test_prepared_scenes_are_the_recipe(prepared, config, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    monkeypatch.setattr(scenes_recipe, "COUNTS", FEW)
    assert not list((prepared / "scenes" / config).glob("*incomplete*"))
    source = sources.open(f"scenes/{config}", "train")
    direct = sources.scenes(config, "train", 48)
    assert len(source) == 48 and source.fields == direct.fields and source.labels() == direct.labels()
    for got, want in zip(source.__getitems__(range(48)), direct.__getitems__(range(48)), strict=True):
        assert got.keys() == want.keys()
        assert all(np.array_equal(got[key], want[key]) for key in want)
    part = sources.open(f"tfds:scenes/{config}", "train[75%:]")
    assert len(part) == 12 and part.fingerprint != source.fingerprint
    assert np.array_equal(part.__getitems__([0])[0]["image"], direct.__getitems__([36])[0]["image"])


def test_images_too_many_to_hold_stay_encoded(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    monkeypatch.setattr(sources, "DECODED_LIMIT", 1000)
    source = sources.open("scenes/plain", "train")
    assert source.fields["image"].encoded and source.__getitems__([5])[0]["image"][:4] == b"\x89PNG"


def test_tfrecord_is_read_into_memory_or_streamed(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(scenes_recipe, "COUNTS", FEW)
    from ssljax.data import scenes

    scenes.Scenes(config="plain", data_dir=str(tmp_path), file_format="tfrecord").download_and_prepare()
    source = sources.open("tfds:scenes/plain", "test")
    assert [int(r["digit"]) for r in source.__getitems__(range(12))] == scenes_recipe.make("plain", "test", 12)["digit"].tolist()
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 100)
    stream = sources.open("tfds:scenes/plain", "test[25%:]")
    assert len(stream) == 9 and "resume is approximate" in sources.resume_note(stream) and not sources.resume_note(source)
    digits = [int(r["digit"]) for shard in stream.shards for r in shard.read(0)]
    assert digits == scenes_recipe.make("plain", "test", 12)["digit"].tolist()[3:]
    assert [int(r["digit"]) for r in stream.shards[0].read(4)] == digits[4:]
    with pytest.raises(UserError, match="stream without random access"):
        stream.__getitems__([0])


def test_prepared_metadata_answers_check(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    os.symlink(prepared / "scenes" / "plain", prepared / "other")
    sources.check("tfds:other", "train")
    with pytest.raises(UserError, match="has no 'valid'; it has test, train"):
        sources.check("tfds:other", "valid")
    with pytest.raises(UserError, match="there: other, scenes"):
        sources.check("tfds:mnist", "train")
    with pytest.raises(UserError, match=r"no prepared version 9\.9\.9"):
        sources.check("tfds:other:9.9.9", "train")
