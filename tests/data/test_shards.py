"""ArrayRecord, tar and mixtures: what is written comes back, orders follow from positions, hostile archives are survived."""

import io
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from ssljax.data import pipeline, prepare, sources, tar
from ssljax.errors import UserError

quick = pytest.mark.quick


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(value, size=6):
    return sources.encode_image(np.full((size, size, 3), value, np.uint8), "png")


def value(record):
    return int(np.asarray(Image.open(io.BytesIO(record["image"])))[0, 0, 0])


def folder(root, values):
    for v in values:
        (root / "ab"[v % 2]).mkdir(parents=True, exist_ok=True)
        (root / "ab"[v % 2] / f"{v:03d}.png").write_bytes(png(v))
    return root


def write_tar(path, members, mode="w"):
    """members: (name, bytes) or TarInfo for a header alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return path


def shards(root, counts, mode="w", suffix="tar"):
    at = 0
    for i, count in enumerate(counts):
        rows = range(at, at := at + count)
        records = [((f"{v:03d}.png", png(v)), (f"{v:03d}.cls", b"%d" % (v % 3)), (f"{v:03d}.txt", b"n%d" % v)) for v in rows]
        write_tar(root / f"part-{i}.{suffix}", [member for record in records for member in record], mode)
    return f"tar:{root}/*.{suffix}"


def everything(source):
    if source.shards:
        return [record for shard in source.shards for record in shard.read(0)]
    return source.__getitems__(range(len(source)))


# ----------------------------------------------------------------------------------------------------------- array_record


@quick
def test_a_prepared_folder_is_the_folder(tmp_path):
    root = folder(tmp_path / "images", range(30))
    (root / "b" / "007.png").unlink()
    os.symlink(tmp_path / "nowhere", root / "b" / "007.png")
    counts = prepare.prepare(f"folder:{root}", tmp_path / "out", shards=4)
    assert counts == {"all": 30} and len(list((tmp_path / "out").glob("all-0000?-of-00004.arrayrecord"))) == 4
    source, before = sources.open(f"arrayrecord:{tmp_path / 'out'}", "all"), sources.open(f"folder:{root}", "all")
    assert source.fields == before.fields
    key = lambda record: record["file"]  # noqa: E731
    assert sorted(everything(source), key=key) == sorted(everything(before), key=key)
    assert [r["file"] for r in everything(source)] != sorted(r["file"] for r in everything(source))  # any slice holds all classes
    some = [29, 3, 3, 17, 0]
    assert source.__getitems__(some) == [everything(source)[i] for i in some]


@quick
def test_splits_of_array_record(tmp_path):
    prepare.prepare(f"folder:{folder(tmp_path / 'images', range(20))}", tmp_path / "out", shards=3)
    spec = f"arrayrecord:{tmp_path / 'out'}"
    whole = [value(r) for r in everything(sources.open(spec, "all"))]
    slices = {"train": whole[:18], "test": whole[18:], "train[50%:]": whole[9:18], "all[2:4]+test": whole[2:4] + whole[18:]}
    for split, expected in slices.items():
        assert [value(r) for r in everything(sources.open(spec, split))] == expected
    parts = {split: sources.open(spec, split).fingerprint for split in ("all", "train", "test", "train[:50%]")}
    assert len(set(parts.values())) == 4
    one = sources.open(f"{spec}/all-00001-of-00003.arrayrecord", "all")
    assert [value(r) for r in everything(one)] == whole[6:13]
    folder(tmp_path / "parts" / "train", range(6)), folder(tmp_path / "parts" / "val", range(6, 9))
    assert prepare.prepare(f"folder:{tmp_path / 'parts'}", tmp_path / "two") == {"train": 6, "val": 3}
    assert {value(r) for r in everything(sources.open(f"arrayrecord:{tmp_path / 'two'}", "test"))} == {6, 7, 8}
    for path, split, message in [
        (tmp_path / "out", "trian", "has no 'trian'; it has all, test, train"),
        (tmp_path / "images", "all", "no dataset.json"),
        (tmp_path / "out" / "x*", "all", "no shard is called"),
    ]:
        with pytest.raises(UserError, match=message):
            sources.check(f"arrayrecord:{path}", split)
    (tmp_path / "out" / "all-00000-of-00003.arrayrecord").unlink()
    with pytest.raises(UserError, match="1 of its 3 shards are not"):
        sources.check(spec, "all")


@quick
def test_a_damaged_record_is_a_broken_image(tmp_path):
    prepare.prepare(f"folder:{folder(tmp_path / 'images', range(40))}", tmp_path / "out", shards=1)
    source = sources.open(f"arrayrecord:{tmp_path / 'out'}", "all")
    before = everything(source)
    (file,) = (tmp_path / "out").glob("*.arrayrecord")
    data = bytearray(file.read_bytes())
    at = data.find(before[20]["image"])
    data[at + 8] ^= 0xFF
    file.write_bytes(data)
    after = everything(sources.open(f"arrayrecord:{tmp_path / 'out'}", "all"))
    assert after[:20] + after[21:] == before[:20] + before[21:]
    assert after[20]["image"] == b"" and "damaged record" in after[20]["problem"]


@quick
def test_an_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    root = folder(tmp_path / "images", range(10))
    done = []

    class Interrupted(sources.Source):
        def __getitems__(self, ids):
            done.append(ids)
            raise KeyboardInterrupt

    opened = sources.open(f"folder:{root}", "all")
    monkeypatch.setattr(sources, "open", lambda *_: Interrupted(**vars(opened)))
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(f"folder:{root}", tmp_path / "out", shards=1)
    assert done and sorted(p.name for p in tmp_path.iterdir()) == ["images"]
    monkeypatch.undo()
    prepare.prepare(f"folder:{root}", tmp_path / "out")
    with pytest.raises(UserError, match="exists already"):
        prepare.prepare(f"folder:{root}", tmp_path / "out")
    with pytest.raises(UserError, match="write folder:PATH or tar:GLOB"):
        prepare.prepare("tfds:mnist", tmp_path / "other")


def test_the_prepare_command(tmp_path, capsys):
    spec = shards(tmp_path / "tars", (4, 3))
    command = [sys.executable, "-m", "ssljax.data.prepare", "--source", spec, "--out", str(tmp_path / "out")]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0 and f"--config.data.source=arrayrecord:{tmp_path / 'out'}" in told.stdout, told.stderr
    assert "tensorflow" not in told.stderr.lower()
    assert [value(r) for r in everything(sources.open(f"arrayrecord:{tmp_path / 'out'}", "all"))] == list(range(7))
    with pytest.raises(UserError, match="--source is missing: folder:PATH or tar:GLOB"):
        prepare.main(["prepare", "--out", "x"])
    with pytest.raises(SystemExit):
        prepare.main(["prepare", "--help"])
    assert "--shards" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------------------- tar


@quick
@pytest.mark.parametrize(("mode", "suffix"), [("w", "tar"), ("w:gz", "tar.gz")])
def test_tar_records(tmp_path, mode, suffix):
    source = sources.open(shards(tmp_path, (5, 0, 4), mode, suffix), "all")
    assert len(source) == 9 and source.fields["label"].classes == ("0", "1", "2") and source.fields["caption"].kind == "text"
    assert [(value(r), r["label"], r["caption"]) for r in everything(source)] == [(v, v % 3, f"n{v}") for v in range(9)]
    assert [value(r) for r in source.shards[1].read(2)] == [7, 8]
    note = sources.resume_note(source)
    assert "resume is approximate" in note and "ssljax.data.prepare" in note and "\n" not in note
    part = sources.open(f"tar:{tmp_path}/*.{suffix}", "all[30%:]")
    assert [value(r) for r in everything(part)] == list(range(3, 9)) and part.fingerprint != source.fingerprint
    few = sources.subset(source, 4)
    assert [value(r) for r in everything(few)] == [0, 1, 2, 3] and len(few.shards) == 1


@quick
def test_tar_splits_json_and_mistakes(tmp_path):
    import json

    meta = json.dumps({"label": 4, "caption": "a cat"}).encode()
    write_tar(tmp_path / "set-train-0.tar", [("d/x.jpg", png(1)), ("d/x.json", meta), ("d/y.webp", png(2)), ("notes.txt", b"no image")])
    write_tar(tmp_path / "set-val-0.tar", [("z.png", png(3)), ("z.json", b"{broken")])
    train = sources.open(f"tar:{tmp_path}", "train")
    assert [(value(r), r["label"], r["caption"]) for r in everything(train)] == [(1, 4, "a cat"), (2, -1, "")]
    assert [(value(r), r["label"], r["caption"]) for r in everything(sources.open(f"tar:{tmp_path}", "val"))] == [(3, -1, "")]
    write_tar(tmp_path / "empty" / "a.tar", [("x.txt", b"1")])
    for spec, split, message in [
        (f"tar:{tmp_path}/none-*.tar", "all", "no file matches"),
        (f"tar:{tmp_path}", "dev", "has no 'dev'; it has all, test, train, val"),
        (f"mix:0.5*tar:{tmp_path}+0.5*scenes/plain", "train", "cannot be part of a mixture; it is a stream"),
    ]:
        with pytest.raises(UserError, match=message):
            sources.check(spec, split)
    with pytest.raises(UserError, match="holds no record with an image"):
        sources.open(f"tar:{tmp_path / 'empty'}", "all")


def test_a_stream_gives_every_record_once_an_epoch_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "WINDOW", 5)
    source = sources.open(shards(tmp_path, (7, 4, 6, 7)), "all")
    settings = dict(batch=4, seed=3, crop="device", image_size=6)
    batches = list(pipeline.train_batches(source, **settings, steps=12))
    ids, epochs = (np.concatenate([b[key] for b in batches]) for key in ("id", "epoch"))
    for epoch in (0, 1):
        assert sorted(ids[epochs == epoch]) == list(range(24))
    assert not np.array_equal(ids[:24], ids[24:]) and not np.array_equal(ids[:24], np.sort(ids[:24]))
    for batch in batches:
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["id"])
        np.testing.assert_array_equal(batch["label"], batch["id"] % 3)
    for start in (1, 5, 6, 8):
        again = next(pipeline.train_batches(source, **settings, start_step=start))
        np.testing.assert_array_equal(again["id"], batches[start]["id"])
    both = [list(pipeline.train_batches(source, **settings, steps=7, process_index=i, process_count=2)) for i in range(2)]
    seen = [{int(i) for b in part for i in b["id"]} for part in both]
    assert not seen[0] & seen[1] and seen[0] | seen[1] == set(range(24))
    with pytest.raises(UserError, match="4 shards for 8 processes"):
        pipeline.train_batches(source, **{**settings, "batch": 8}, process_count=8)
    parts = [list(pipeline.eval_batches(source, batch=10, image_size=6, process_index=i, process_count=2)) for i in range(2)]
    whole = np.concatenate([np.concatenate([a["id"], b["id"]]) for a, b in zip(*parts, strict=True)])
    assert whole.tolist() == [*range(24), *[-1] * 6] and not parts[1][-1]["valid"].any()


@quick
def test_hostile_tars(tmp_path, monkeypatch):
    def header(name, **values):
        info = tarfile.TarInfo(name)
        for key, v in values.items():
            setattr(info, key, v)
        return info

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tar, "MEMBER_LIMIT", 10_000)
    write_tar(tmp_path / "evil.tar", [
        ("/etc/absolute.png", png(1)), ("../../outside.png", png(2)), ("a/../../b.png", png(3)),
        header("link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), header("hard.png", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        header("device.png", type=tarfile.CHRTYPE), header("pipe.png", type=tarfile.FIFOTYPE), ("large.png", b"0" * 20_000),
        ("good.png", png(9)), ("good.cls", b"9" * 400), ("odd.png", png(8)), ("odd.cls", b"-3"),
    ])  # fmt: skip
    problems = tar.index(tmp_path / "evil.tar")["problems"]
    assert len(problems) == 8 and sum("leads out" in p for p in problems) == 3 and "20000 bytes are too many" in problems[-1]
    source = sources.open(f"tar:{tmp_path}/evil.tar", "all")
    assert [value(r) for r in everything(source)] == [9, 8] and "label" not in source.fields
    with (tmp_path / "bomb.tar").open("wb") as file:  # declares 8 TiB and has none of it
        file.write(header("bomb.png", size=2**43).tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    index = tar.index(tmp_path / "bomb.tar")
    assert index["records"] == 0 and "'bomb.png' claims 8796093022208 bytes" in index["problems"][0]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["bomb.tar", "evil.tar"]


@quick
def test_a_tar_cut_short_keeps_what_came_before(tmp_path):
    shards(tmp_path, (6,))
    path = tmp_path / "part-0.tar"
    data = path.read_bytes()
    source = sources.open(f"tar:{path}", "all")
    path.write_bytes(data[: len(data) // 3])  # after it was indexed
    records = everything(source)
    assert len(records) == 6 and value(records[0]) == 0 and records[-1]["image"] == b"" and "ends early" in records[-1]["problem"]
    assert 1 <= len(sources.open(f"tar:{path}", "all")) < 6


class Memory:
    """As much of a path as the tar reader uses: ten thousand files on a disk take half a minute."""

    name = "mutated.tar"

    def __init__(self, data):
        self.data = bytes(data)

    def open(self, mode):
        return io.BytesIO(self.data)

    def stat(self):
        return os.stat_result((0,) * 6 + (len(self.data), 0, 0, 0))


@quick
def test_mutated_tars_never_crash_the_reader(tmp_path):
    shards(tmp_path, (3,))
    data, rng = (tmp_path / "part-0.tar").read_bytes()[:6144], np.random.default_rng(0)
    fields = {"image": sources.Field("image", encoded=True), "label": sources.Field("label"), "caption": sources.Field("text")}
    for i in range(10_000):
        mutated = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 12)):
            # Half of the damage to the headers, where it matters.
            mutated[at % 512 if rng.random() < 0.5 else at] = rng.integers(256)
        if rng.random() < 0.5:  # a checksum that fits, so that the damage is believed
            mutated[148:156] = b"%06o\0 " % (sum(mutated[:148]) + 256 + sum(mutated[156:512]))
        path = Memory(mutated[: rng.integers(1, len(data) + 1)])
        for key, extension, found in tar.members(path, ("jpg", "png", "cls", "txt"), []):
            assert isinstance(key, str) and (found is None or isinstance(found, bytes)) and not extension.startswith("/")
        if i % 10 == 0:
            count = tar.index(path)["records"]
            assert len(list(tar.records(path, count, fields))) == count


# -------------------------------------------------------------------------------------------------------------------- mix


@pytest.fixture
def mixture(tmp_path):
    folder(tmp_path / "one", range(10)), folder(tmp_path / "two", range(100, 140))
    (tmp_path / "two" / "c").mkdir()
    (tmp_path / "two" / "c" / "200.png").write_bytes(png(200))
    return f"mix:3*folder:{tmp_path / 'one'}+0.1e1*folder:{tmp_path / 'two'}"


def test_a_mixture_keeps_its_weights_and_each_part_its_epochs(mixture):
    source = sources.open(mixture, "all")
    assert len(source) == 51 and source.parts == ((10, 7500), (41, 2500)) and source.fields["label"].classes == ("a", "b", "c")
    settings = dict(batch=100, seed=5, crop="device", image_size=6)
    batches = list(pipeline.train_batches(source, **settings, steps=100))
    ids, epochs = (np.concatenate([b[key] for b in batches]) for key in ("id", "epoch"))
    assert (ids < 10).sum() == 7500  # exactly, among MIX_BLOCK positions
    shares = (ids.reshape(-1, 100) < 10).sum(1)
    assert 60 < shares.min() and shares.max() < 90 and len(set(shares)) > 5  # and nearly so in each batch
    for part, n in ((ids < 10, 10), (ids >= 10, 41)):
        for epoch in range(5):
            assert len(set(ids[part & (epochs == epoch)])) == n == (part & (epochs == epoch)).sum()
    np.testing.assert_array_equal(batches[0]["image"][:, 0, 0, 0], [value(r) for r in source.__getitems__(batches[0]["id"])])
    again = [next(pipeline.train_batches(source, **settings, start_step=70, process_index=i, process_count=2)) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([b["id"] for b in again]), batches[70]["id"])
    assert not np.array_equal(next(pipeline.train_batches(source, **{**settings, "seed": 6}))["id"], batches[0]["id"])


@quick
def test_mixtures_put_fields_together_and_name_mistakes(mixture, tmp_path):
    arrays = sources.open(mixture.replace("mix:3*", "mix:1*synthetic:n=5,height=6,width=6,classes=2+2*"), "all")
    assert set(arrays.fields) == {"image", "label"} and arrays.fields["label"].classes == ("0", "1", "a", "b", "c")
    assert [r["label"] for r in arrays.__getitems__([5, 55])] == [2, 4]
    assert sources.open(mixture, "all").fingerprint != sources.open(mixture.replace("3*", "2*"), "all").fingerprint
    for spec, message in [
        ("mix:folder:a", "each weight a number above 0"),
        ("mix:0*scenes/plain+1*scenes/photo", "above 0"),
        ("mix:1*scenes/plain+0.00001*scenes/photo", "less than 1/10000"),
        ("mix:1*s3:bucket", "is unknown"),
        (f"mix:1*folder:{tmp_path}/none", "no folder"),
    ]:
        with pytest.raises(UserError, match=message):
            sources.check(spec, "train")
