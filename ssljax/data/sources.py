"""Where records come from, behind one small interface, with random access wherever the files have it.

A spec names a source, a split names a part of it, as TFDS spells it:

    scenes/plain, scenes/photo   the embedded data, made on first use (`tfds:scenes/plain` is the same)
    tfds:NAME[/CONFIG][:VERSION] a data set that TFDS has prepared under $TFDS_DATA_DIR, default ~/tensorflow_datasets
    folder:PATH                  images in class subfolders or flat; a captions.csv or captions.jsonl beside them
    arrayrecord:PATH             what `python -m ssljax.data.prepare` wrote: a directory, or a glob of its shards
    tar:GLOB                     webdataset shards, streamed: files that share a basename are a record (jpg/png/webp + cls/txt/json)
    mix:0.7*SPEC+0.3*SPEC        a weighted mixture of any of these but streams
    synthetic:n=64,height=32-80,width=32-80,classes=10,words=3-8     made-up records of declared features, for tests

    train   test   train[:90%]   train[90%:]   train[100:200]   train+test
"""

import csv
import dataclasses
import functools
import glob
import hashlib
import io
import json
import math
import os
import pathlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ssljax.data import scenes_recipe
from ssljax.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
ARRAY_RECORD = "ssljax-arrayrecord"  # the "format" in dataset.json
DECODED_LIMIT = 256 * 1024**2  # bytes of pixels: below it, a data set of one image size is decoded once, on opening
MEMORY_LIMIT = 2 * 1024**3  # bytes of a data set without random access that may be read into memory; a larger one is streamed
MIX_BLOCK = 10_000  # positions among which a mixture meets its weights exactly


@dataclasses.dataclass(frozen=True)
class Field:
    """What one key of a record holds.

    kind: "image" (encoded bytes if `encoded`, else uint8 (H, W, 3)), "label" (int), "text" (str).
    classes: names of a label's classes. shape: (H, W, 3) where all images have one size, else None.
    """

    kind: str
    classes: tuple[str, ...] = ()
    shape: tuple[int, int, int] | None = None
    encoded: bool = False


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file that is read from one end to the other: `read(start)` iterates over its `length` records from the start-th on."""

    length: int
    read: Callable[[int], Iterator[dict]] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Source:
    """`len(source)` records; `source.__getitems__(ids)` reads any of them, in the order asked for, from any thread.

    fields: {key of a record: Field}, the image under "image"; a record may also hold "file", what a person would call it, and "problem",
    why its image is b"". fingerprint: hex, equal if and only if the same records are meant.
    shards: of a source that can only be streamed, and has no `__getitems__`; a record's id is its place in them, one after the other.
    parts: of a mixture, ((length, share of MIX_BLOCK positions), ...); ids run through the parts, one after the other.
    """

    name: str
    length: int
    fields: dict[str, Field]
    fingerprint: str
    fetch: Callable[[Sequence[int]], list[dict]] | None = dataclasses.field(repr=False)
    shards: tuple[Shard, ...] = ()
    parts: tuple[tuple[int, int], ...] = ()

    def __len__(self):
        return self.length

    def __getitems__(self, ids):
        if self.fetch is None:
            raise UserError(f"data source {self.name!r} is a stream without random access; {_PREPARE}")
        return self.fetch([int(i) for i in ids])

    def labels(self):
        """Names of the label fields; the first is what "label" means when no other is asked for."""
        names = [name for name, field in self.fields.items() if field.kind == "label"]
        return sorted(names, key=lambda name: name != "label")


def open(spec, split):
    """The source that `spec` and `split` name (see the module). Raises UserError as `check` does."""
    kind, rest = _kind(spec)
    return _OPEN[kind](spec, rest, split)


def resume_note(source):
    """What to say at start-up about a source whose resume is not exact, in one line; "" for all others."""
    if not source.shards:
        return ""
    return (
        f"{source.name}: streamed from {len(source.shards)} shards without random access, so resume is approximate: after a restart "
        f"with another number of processes some examples come again and some later; {_PREPARE}"
    )


def check(spec, split):
    """Raises UserError if `open(spec, split)` would for a mistake in the names: unknown kind, data set, split; missing or empty folder.

    Reads names and metadata only, never TensorFlow, never a record: fit for the first second of a run.
    """
    kind, rest = _kind(spec)
    if kind == "folder":
        roots = _folder_roots(spec, rest)
        for name, root in {root: (name, root) for name, root in roots.items()}.values():
            if next(_walk(root), None) is None:
                suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
                raise UserError(f"data source {spec!r} holds no image in {root} (split {name!r}); looked for {suffixes}")
        _known_splits(spec, split, roots)
    elif kind == "synthetic":
        _parse_synthetic(spec, rest)
        parse_split(split)
    elif kind == "mix":
        for _, part in _parse_mix(spec, rest):
            check(part, split)
    elif kind == "arrayrecord":
        _known_splits(spec, split, _ranges(_array_record_counts(*_array_record_files(spec, rest))))
    elif kind == "tar":
        _known_splits(spec, split, _ranges(dict.fromkeys(_tar_splits(spec, rest), 0)))
    elif _is_scenes(rest):
        _known_splits(spec, split, scenes_recipe.COUNTS)
    else:
        _known_splits(spec, split, _tfds_info(_tfds_directory(spec, rest))["splits"])


# ---------------------------------------------------------------------------------------------------------------- splits


def stored_splits(spec):
    """The splits that the files of a folder or tar spec are in, each file in one of them: "all", or "train", "val" and so on."""
    kind, rest = _kind(spec)
    if kind == "tar":
        return list(_tar_splits(spec, rest))
    roots = _folder_roots(spec, rest)
    return ["all"] if "all" in roots else [name for name, root in roots.items() if root.name == name]


def parse_split(split):
    """ "train[:90%]+test" -> [("train", None, "90%"), ("test", None, None)]. Raises UserError on any other spelling."""
    parts = []
    for part in split.split("+"):
        match = re.fullmatch(r"\s*(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?\s*", part)
        if not match:
            raise UserError(f"split {split!r} is not understood; write it as train, train[:90%], train[90%:], train[100:200] or train+test")
        parts.append(match.groups())
    return parts


def slice_bounds(low, high, n):
    """(lo, hi) of a slice of n records; percentages round to the nearest record, negatives count from the end, as in TFDS."""

    def bound(text, default):
        if text is None:
            return default
        value = round(int(text[:-1]) * n / 100.0) if text.endswith("%") else int(text)
        return min(max(value + n if value < 0 else value, 0), n)

    return bound(low, 0), bound(high, n)


def _known_splits(spec, split, known):
    for name, _, _ in parse_split(split):
        if name not in known:
            raise UserError(f"split {split!r}: data source {spec!r} has no {name!r}; it has {', '.join(sorted(known))}")


def _ranges(counts):
    """{split: records, in the order they lie in} -> {split: (first id, end)}. With "all" alone, "train" is its first nine tenths and
    "test" (or val, validation) the rest; else "all" is everything."""
    ends = np.cumsum(list(counts.values())).tolist()
    ranges = {name: (end - count, end) for (name, count), end in zip(counts.items(), ends, strict=True)}
    if set(counts) == {"all"}:
        cut = slice_bounds("90%", None, ends[-1])[0]
        return ranges | {"train": (0, cut)} | dict.fromkeys(_TEST_NAMES, (cut, ends[-1]))
    held_out = [name for name in _TEST_NAMES if name in ranges]
    return {"all": (0, ends[-1])} | {name: ranges[held_out[0]] for name in _TEST_NAMES if held_out} | ranges


def _ids(spec, split, counts):
    """The ids that a split names among `counts` (as `_ranges` takes them). Raises UserError for an unknown or empty one."""
    ranges = _ranges(counts)
    _known_splits(spec, split, ranges)
    parts = [np.arange(*ranges[name])[slice(*slice_bounds(low, high, np.ptp(ranges[name])))] for name, low, high in parse_split(split)]
    ids = np.concatenate(parts)
    if not len(ids):
        raise UserError(f"split {split!r} of data source {spec!r} holds no records")
    return ids


def _select(split, counts):
    """Split -> [(name, ids)] over splits of the given sizes."""
    return [(name, np.arange(*slice_bounds(low, high, counts[name]))) for name, low, high in parse_split(split)]


def _kind(spec):
    if not isinstance(spec, str) or not spec:
        raise UserError(f"data source {spec!r} is not a spec; write {_SPECS}")
    if _is_scenes(spec):
        return "tfds", spec
    kind, colon, rest = spec.partition(":")
    if kind == "embedded" and _is_scenes("scenes/" + rest.removeprefix("scenes/")):
        return "tfds", "scenes/" + rest.removeprefix("scenes/")
    if not colon or kind not in _OPEN:
        raise UserError(f"data source {spec!r} is unknown; write {_SPECS}")
    if kind == "tfds" and rest.split("/")[0] == "scenes" and not _is_scenes(rest):
        raise UserError(f"data source {spec!r}: scenes has the configs {', '.join(scenes_recipe.CLASSES)}")
    return kind, rest


def _is_scenes(rest):
    name, _, config = rest.partition("/")
    return name == "scenes" and config in scenes_recipe.CLASSES


def _digest(*parts):
    digest = hashlib.sha256()
    for part in parts:
        part = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------- memory


def arrays(values, classes=None, name="arrays"):
    """Arrays in memory as a source. No TensorFlow.

    Args:
      values: {"image": uint8 (N, H, W, 3), (N, H, W, 1) or (N, H, W); int arrays (N,) become labels; lists of str become text};
        anything else is left out. classes: {label: names}; default: the numbers that occur.
    """
    image = np.asarray(values["image"])
    if image.dtype != np.uint8 or image.ndim not in (3, 4) or (image.ndim == 4 and image.shape[-1] not in (1, 3)):
        raise UserError(f"images in memory must be uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3); got {image.dtype} {image.shape}")
    image = image[..., None] if image.ndim == 3 else image
    image = np.broadcast_to(image, (*image.shape[:3], 3))
    fields, columns = {"image": Field("image", shape=image.shape[1:])}, {"image": image}
    for key, value in values.items():
        array = np.asarray(value)
        if key == "image" or array.shape != (len(image),):
            continue
        if array.dtype.kind in "iu":
            known = (classes or {}).get(key) or [str(i) for i in range(int(array.max(initial=-1)) + 1)]
            fields[key], columns[key] = Field("label", tuple(known)), array
        elif array.dtype.kind in "UO":
            fields[key], columns[key] = Field("text"), list(value)
    parts = [[key, "\0".join(c) if isinstance(c, list) else c.tobytes()] for key, c in columns.items()]
    return Source(name, len(image), fields, _digest(*sum(parts, [])), lambda ids: [{key: c[i] for key, c in columns.items()} for i in ids])


def scenes(config, split, n=None):
    """The embedded data straight from the recipe, in memory: the same records as `open("scenes/...", split)`, without TensorFlow."""
    made = scenes_recipe.make(config, split, n)
    values = {key: made[key] for key in ["image", *scenes_recipe.CLASSES[config], "caption", "description"] if key in made}
    return arrays(values, scenes_recipe.CLASSES[config], name=f"scenes/{config}")


# ------------------------------------------------------------------------------------------------------------- synthetic


def synthetic(features, n, name="synthetic"):
    """n records made up from declared features, for tests: record i depends on i alone. No TensorFlow.

    features: {key: {"height": int or (lo, hi), "width": the same, "encoding": "jpeg" (default) or "png"}
                  | {"classes": number or names} | {"words": (lo, hi)}}, inclusive ranges.
    """
    fields = {}
    for key, feature in features.items():
        if "height" in feature:
            (h, top), (w, right) = _range(feature["height"]), _range(feature["width"])
            fields[key] = Field("image", shape=(h, w, 3) if (h, w) == (top, right) else None, encoded=True)
        elif "classes" in feature:
            names = feature["classes"]
            fields[key] = Field("label", tuple(map(str, range(names) if isinstance(names, int) else names)))
        elif "words" in feature:
            fields[key] = Field("text")
        else:
            raise UserError(f"synthetic feature {key!r} has none of height, classes, words: {feature}")

    def value(key, rng):
        feature, field = features[key], fields[key]
        if field.kind == "label":
            return int(rng.integers(len(field.classes)))
        if field.kind == "text":
            low, high = _range(feature["words"])
            return " ".join(f"word{rng.integers(1000)}" for _ in range(rng.integers(low, high + 1)))
        width, height = (int(rng.integers(low, high + 1)) for low, high in (_range(feature[k]) for k in ("width", "height")))
        return encode_image(_smooth(rng, width, height), feature.get("encoding", "jpeg"))

    def fetch(ids):
        return [{key: value(key, np.random.default_rng([k, i])) for k, key in enumerate(features)} for i in ids]

    return Source(name, n, fields, _digest(json.dumps(features, sort_keys=True), n), fetch)


def _range(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def encode_image(image, encoding):
    """uint8 (H, W, 3) -> the bytes of a file, "jpeg" or "png"."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, encoding)
    return buffer.getvalue()


def _smooth(rng, width, height):
    """A few random colours, blown up: compresses and decodes about as a photograph does. uint8 (height, width, 3)."""
    from PIL import Image

    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _parse_synthetic(spec, rest):
    allowed = {"n": "64", "height": "32-80", "width": "32-80", "classes": "10", "words": "3-8", "encoding": "jpeg"}
    given = dict(part.partition("=")[::2] for part in rest.split(",") if part)
    try:
        if set(given) - set(allowed):
            raise ValueError(sorted(set(given) - set(allowed))[0])
        got = {**allowed, **given}
        ranges = {key: [int(x) for x in (got[key].split("-") * 2)[:2]] for key in ("height", "width", "words")}
        n, classes = int(got["n"]), int(got["classes"])
    except ValueError as error:
        expected = ",".join(f"{key}={value}" for key, value in allowed.items())
        raise UserError(f"data source {spec!r}: {error}; write it as synthetic:{expected} (each part optional)") from None
    image = {"height": ranges["height"], "width": ranges["width"], "encoding": got["encoding"]}
    return {"image": image, "label": {"classes": classes}, "caption": {"words": ranges["words"]}}, n


def _open_synthetic(spec, rest, split):
    features, n = _parse_synthetic(spec, rest)
    counts = {name: n for name, _, _ in parse_split(split)}
    ids = np.concatenate([ids for _, ids in _select(split, counts)])
    if not len(ids):
        raise UserError(f"split {split!r} of data source {spec!r} holds no records")
    return _part(synthetic(features, n, name=spec), ids)


def missing(fields, file, problem):
    """The record of an example that cannot be read at all: an empty image, label -1, no text."""
    empty = {"image": b"", "label": -1, "text": ""}
    return {"file": file, "problem": problem, **{key: empty[field.kind] for key, field in fields.items()}}


def subset(source, most):
    """`source` with at most so many records (0: all), a fixed random choice of them in their order; of a stream the first ones, so that
    the others need not be read."""
    if not most or most >= len(source):
        return source
    if source.shards:
        return _part(source, np.arange(most))
    return _part(source, np.sort(np.random.default_rng(0).permutation(len(source))[:most]))


def _part(source, ids):
    """The records `ids` (int array) of a source, as a source."""

    fingerprint = _digest(source.fingerprint, ids.tobytes())
    if source.shards:
        ends = np.cumsum([shard.length for shard in source.shards])
        cuts = np.split(np.sort(ids), np.searchsorted(np.sort(ids), ends[:-1]))  # a stream keeps its own order
        starts = ends - [shard.length for shard in source.shards]
        shards = [_picked(shard, mine - start) for shard, mine, start in zip(source.shards, cuts, starts, strict=True) if len(mine)]
        return dataclasses.replace(source, length=len(ids), shards=tuple(shards), fingerprint=fingerprint)

    def fetch(wanted):
        return source.fetch([int(ids[i]) for i in wanted])

    return dataclasses.replace(source, length=len(ids), fetch=fetch, parts=(), fingerprint=fingerprint)


def _picked(shard, kept):
    """The records `kept` (ascending places) of a shard, as a shard."""

    def read(start):
        if start >= len(kept):
            return
        wanted = iter(kept[start:].tolist())
        at = next(wanted)
        for place, record in enumerate(shard.read(at), at):
            if place == at:
                yield record
                at = next(wanted, None)
                if at is None:
                    return

    return Shard(len(kept), read)


# ---------------------------------------------------------------------------------------------------------------- folder

_TEST_NAMES = ("test", "val", "validation")


def _folder_roots(spec, path):
    """{split: folder}. With train/ and test/ (or val/, validation/) subfolders: those. Otherwise "all" is the whole folder, "train" nine
    tenths of it and "test" (or validation) the other tenth, both folders being the same."""
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"data source {spec!r}: there is no folder {path!r}; give the path of a folder of images")
    if (root / "train").is_dir():
        found = [root / name for name in _TEST_NAMES if (root / name).is_dir()]
        return {"train": root / "train", **{name: root / name if root / name in found else found[0] for name in _TEST_NAMES if found}}
    return dict.fromkeys(("all", "train", *_TEST_NAMES), root)


def _walk(root):
    """Relative posix paths of the images under root, folder by folder in sorted order; hidden ones are passed over."""
    for directory, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = pathlib.Path(directory).relative_to(root)
        for name in sorted(files):
            if not name.startswith(".") and pathlib.Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield (inside / name).as_posix()


def _open_folder(spec, path, split):
    check(spec, split)
    roots = _folder_roots(spec, path)
    listed = {root: _records(spec, root) for root in {roots[name] for name, _, _ in parse_split(split)}}
    # Classes are those of all splits, so that train and test number them alike.
    names = sorted({c for root in set(roots.values()) for c in _classes(root)})
    chosen = []
    for name, low, high in parse_split(split):
        records = listed[roots[name]]
        if "all" in roots and name != "all":  # no subfolders say what to hold out
            cut = slice_bounds("90%", None, len(records))[0]
            records = _shuffled(records)[:cut] if name == "train" else _shuffled(records)[cut:]
        if low is not None or high is not None:
            records = _shuffled(records)[slice(*slice_bounds(low, high, len(records)))]
        chosen += [(roots[name], *record) for record in sorted(records)]
    if not chosen:
        raise UserError(f"split {split!r} of data source {spec!r} holds no images")

    captioned = all(caption is not None for *_, caption in chosen)
    labelled = bool(names) and all("/" in file for _, file, _ in chosen)
    fields = {"image": Field("image", encoded=True)}
    if labelled:
        fields["label"] = Field("label", tuple(names))
    if captioned:
        fields["caption"] = Field("text")
    number = {name: i for i, name in enumerate(names)}

    def fetch(ids):
        return [read(*chosen[i]) for i in ids]

    def read(root, file, caption):
        try:
            record = {"image": (root / file).read_bytes(), "file": file}
        except OSError as error:  # an unreadable file is a broken image, and the run goes on
            record = {"image": b"", "file": file, "problem": f"unreadable: {error.strerror}"}
        if labelled:
            record["label"] = number[file.split("/")[0]]
        if captioned:
            record["caption"] = caption
        return record

    several = len(listed) > 1  # the folder's own place and name are no part of what it holds
    identity = [(root.name if several else "", file, _size(root / file), caption) for root, file, caption in chosen]
    return Source(spec, len(chosen), fields, _digest(names, *identity), fetch)


def _size(path):
    try:
        return path.stat().st_size
    except OSError:  # a link to nowhere
        return -1


def _classes(root):
    return [p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".") and next(_walk(p), None)]


def _shuffled(records):
    """A fixed shuffle by name, so that slices of a folder sorted by class hold all classes; independent of where the folder lies."""
    return sorted(records, key=lambda record: hashlib.md5(repr(record).encode()).digest())


def _records(spec, root):
    """[(file, caption or None)], sorted. A captions file, where there is one, is the list of records."""
    for name, parse in (("captions.csv", csv.DictReader), ("captions.jsonl", lambda lines: (json.loads(x) for x in lines if x.strip()))):
        path = root / name
        if not path.exists():
            continue
        try:
            with path.open(encoding="utf-8", newline="") as lines:
                records = [(str(pathlib.PurePosixPath(row["file"])), str(row["caption"])) for row in parse(lines)]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"data source {spec!r}: {path} needs `file` and `caption` on every line ({reason})") from None
        missing = [file for file, _ in records if not (root / file).is_file()]
        if missing:
            raise UserError(f"data source {spec!r}: {path} names {len(missing)} files that are not there, the first {missing[0]!r}")
        return sorted(records)
    return [(file, None) for file in _walk(root)]


# ------------------------------------------------------------------------------------------------------------------ tfds


def data_dir():
    """Where prepared data sets lie: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _versions(directory):
    """Prepared versions directly under a directory, the newest last."""
    found = [p for p in directory.glob("*.*.*") if (p / "dataset_info.json").exists() and re.fullmatch(r"\d+\.\d+\.\d+", p.name)]
    return sorted(found, key=lambda p: tuple(map(int, p.name.split("."))))


def _tfds_directory(spec, rest):
    """NAME[/CONFIG][:VERSION] -> the directory of the newest (or asked) prepared version."""
    name, _, version = rest.partition(":")
    base = data_dir() / name
    prepare = f"prepare it with `tfds build {name} --file_format=array_record`, or set TFDS_DATA_DIR"
    if not name or not base.is_dir():
        there = sorted(p.name for p in data_dir().iterdir() if p.is_dir() and p.name != "downloads") if data_dir().is_dir() else []
        raise UserError(f"data source {spec!r}: {name!r} is not under {data_dir()} (there: {', '.join(there) or 'nothing'}); {prepare}")
    versions = _versions(base)
    if not versions and "/" not in name:
        configs = sorted(p.name for p in base.iterdir() if p.is_dir() and _versions(p))
        default = base / ".config" / "metadata.json"
        chosen = json.loads(default.read_text()).get("default_config_name") if default.exists() else None
        chosen = configs[0] if len(configs) == 1 else chosen
        if configs and chosen not in configs:
            raise UserError(f"data source {spec!r}: choose one of its prepared configs: " + ", ".join(f"tfds:{name}/{c}" for c in configs))
        versions = _versions(base / chosen) if configs else []
    if version:
        versions = [p for p in versions if p.name == version]
    if not versions:
        raise UserError(f"data source {spec!r}: no prepared version{' ' + version if version else ''} under {base}; {prepare}")
    return versions[-1]


def _tfds_info(directory):
    """From dataset_info.json: {"splits": {name: records}, "bytes": {name: bytes}}."""
    splits = json.loads((directory / "dataset_info.json").read_text())["splits"]
    return {
        "splits": {s["name"]: sum(map(int, s["shardLengths"])) for s in splits},
        "bytes": {s["name"]: int(s.get("numBytes", 0)) for s in splits},
    }


def _open_tfds(spec, rest, split):
    check(spec, split)
    tf = import_tensorflow()
    import tensorflow_datasets as tfds

    if _is_scenes(rest):
        from ssljax.data import scenes as builder_of_scenes

        directory = builder_of_scenes.prepare(rest.partition("/")[2], data_dir())
    else:
        directory = _tfds_directory(spec, rest)
    builder, info = tfds.builder_from_directory(directory), _tfds_info(directory)
    selection = _select(split, info["splits"])
    count = sum(len(ids) for _, ids in selection)
    if not count:
        raise UserError(f"split {split!r} of data source {spec!r} holds no records")

    images = [name for name, f in builder.info.features.items() if isinstance(f, tfds.features.Image)]
    if not images:
        raise UserError(f"data source {spec!r} has no image feature; it has {', '.join(builder.info.features)}")
    image = "image" if "image" in images else images[0]
    shape = builder.info.features[image].shape
    fields = {"image": Field("image", shape=tuple(shape) if None not in shape and shape[-1] == 3 else None, encoded=True)}
    # TFDS keeps no order of features. The embedded data's labels have one; others are sorted.
    first = list(scenes_recipe.CLASSES[rest.partition("/")[2]]) if _is_scenes(rest) else []
    for name in first + sorted(set(builder.info.features) - set(first)):
        feature = builder.info.features[name]
        if isinstance(feature, tfds.features.ClassLabel):
            fields[name] = Field("label", tuple(feature.names or map(str, range(feature.num_classes))))
        elif isinstance(feature, tfds.features.Text):
            fields[name] = Field("text")

    def record(raw):
        out = {name: raw[image if name == "image" else name] for name in fields}
        return {name: v.decode("utf-8", "replace") if fields[name].kind == "text" else v for name, v in out.items()}

    decoders = {image: tfds.decode.SkipDecoding()}
    fingerprint = _digest(builder.info.full_name, sorted(info["splits"].items()), split)
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        reader = builder.as_data_source(split, decoders=decoders)
        lazy = Source(spec, count, fields, fingerprint, lambda ids: [record(r) for r in reader.__getitems__(ids)])
        return _decoded(tf, lazy) if count * math.prod(fields["image"].shape or [DECODED_LIMIT]) <= DECODED_LIMIT else lazy

    held = sum(info["bytes"][name] * len(ids) / max(info["splits"][name], 1) for name, ids in selection)
    if held > MEMORY_LIMIT:
        stream = _tfrecord_stream(tfds, builder, spec, fields, record, decoders, list(info["splits"]))
        return _part(stream, _ids(spec, split, info["splits"]))
    rows = [record(r) for r in tfds.as_numpy(builder.as_dataset(split=split, decoders=decoders, shuffle_files=False))]
    return Source(spec, count, fields, fingerprint, lambda ids: [rows[i] for i in ids])


def _tfrecord_stream(tfds, builder, spec, fields, record, decoders, splits):
    """All splits of a TFDS data set in TFRecord, shard by shard."""

    def shard(name, low, high):
        def read(start):
            if start < high - low:
                part = builder.as_dataset(split=f"{name}[{low + start}:{high}]", decoders=decoders, shuffle_files=False)
                yield from map(record, tfds.as_numpy(part))

        return Shard(high - low, read)

    shards = []
    for name in splits:
        lengths = builder.info.splits[name].shard_lengths
        shards += [shard(name, end - n, end) for n, end in zip(lengths, np.cumsum(lengths).tolist(), strict=True) if n]
    return Source(spec, sum(s.length for s in shards), fields, _digest(builder.info.full_name), None, shards=tuple(shards))


def _decoded(tf, source):
    """A small source of one image size, decoded once: every epoch after that costs a copy."""
    rows = source.__getitems__(range(len(source)))
    for row in rows:
        row["image"] = tf.io.decode_image(row["image"], channels=3, expand_animations=False).numpy()
    fields = {**source.fields, "image": dataclasses.replace(source.fields["image"], encoded=False)}
    return dataclasses.replace(source, fields=fields, fetch=lambda ids: [rows[i] for i in ids])


def import_tensorflow():
    """TensorFlow, kept off the accelerators and quiet. Takes 5 to 30 s the first time."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
    return tf


# ----------------------------------------------------------------------------------------------------------- array_record

_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


def _array_record_files(spec, path):
    """PATH -> (dataset.json as a dict, {file name: path} of the shards that are meant)."""
    at = pathlib.Path(path).expanduser()
    directory = at if at.is_dir() else at.parent
    try:
        about = json.loads((directory / "dataset.json").read_text(encoding="utf-8"))
        if about["format"] != ARRAY_RECORD:
            raise KeyError("format")
        names = [name for shards in about["splits"].values() for name, _ in shards]
    except FileNotFoundError:
        raise UserError(f"data source {spec!r}: {directory} has no dataset.json; write the directory with {_PREPARE_COMMAND}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"data source {spec!r}: {directory}/dataset.json is not what {_PREPARE_COMMAND} writes ({error!r})") from None
    wanted = {pathlib.Path(p).name for p in glob.glob(str(at))} if not at.is_dir() else set(names)
    files = {name: directory / name for name in names if name in wanted and pathlib.PurePath(name).name == name}
    if not files:
        raise UserError(f"data source {spec!r}: no shard is called {at.name}; {directory} has {', '.join(names[:3])} ...")
    missing = [name for name, file in files.items() if not file.is_file()]
    if missing:
        raise UserError(f"data source {spec!r}: {len(missing)} of its {len(files)} shards are not in {directory}, the first {missing[0]}")
    return about, files


def _array_record_counts(about, files):
    counts = {split: sum(n for name, n in shards if name in files) for split, shards in about["splits"].items()}
    return {split: n for split, n in counts.items() if n}


def _open_array_record(spec, path, split):
    import msgpack
    from array_record.python.array_record_module import ArrayRecordReader

    about, files = _array_record_files(spec, path)
    ids = _ids(spec, split, _array_record_counts(about, files))
    fields = {key: Field(f["kind"], tuple(f.get("classes", ())), encoded=f["kind"] == "image") for key, f in about["fields"].items()}
    shards = [(name, n) for shards in about["splits"].values() for name, n in shards if name in files]
    ends = np.cumsum([n for _, n in shards])
    readers, lock = {}, threading.Lock()

    def reader(shard):
        if shard not in readers:
            with lock:
                if shard not in readers:
                    name, n = shards[shard]
                    made = ArrayRecordReader(os.fspath(files[name]), _RANDOM_ACCESS, file_reader_buffer_size=32768)
                    if made.num_records() != n:
                        raise UserError(f"data source {spec!r}: {files[name]} holds {made.num_records()} records, dataset.json says {n}")
                    readers[shard] = made
        return readers[shard]

    def read(shard, places):
        try:
            return [msgpack.unpackb(raw) for raw in reader(shard).read(places)]
        except (RuntimeError, ValueError, IndexError, TypeError, msgpack.UnpackException) as error:
            if len(places) == 1:
                return [missing(fields, f"{shards[shard][0]} record {places[0]}", f"damaged record: {error}"[:200])]
            return [record for place in places for record in read(shard, [place])]  # the others are good

    def fetch(wanted):
        wanted = np.asarray(wanted, np.int64)
        which = np.searchsorted(ends, wanted, "right")
        out = [None] * len(wanted)
        for shard in np.unique(which).tolist():
            places = np.flatnonzero(which == shard)
            start = int(ends[shard]) - shards[shard][1]
            for place, record in zip(places.tolist(), read(shard, (wanted[places] - start).tolist()), strict=True):
                out[place] = record
        return out

    fingerprint = _digest(about["fingerprint"], sorted(files))
    return _part(Source(spec, int(ends[-1]), fields, fingerprint, fetch), ids)


# -------------------------------------------------------------------------------------------------------------------- tar


def _tar_splits(spec, pattern):
    """GLOB -> {split: [paths]}: by a word train, test, val or validation in a shard's name or its folder's if all have one, else "all"."""
    root = pathlib.Path(pattern).expanduser()
    paths = sorted(map(pathlib.Path, glob.glob(os.fspath(root / "*.tar*" if root.is_dir() else root))))
    if not paths:
        raise UserError(f"data source {spec!r}: no file matches {pattern!r}; write 'tar:PATH/*.tar', quoted, so that the shell leaves it")
    words = [re.findall(r"(?<![a-z])(train|test|validation|val)(?![a-z])", f"{p.parent.name}/{p.name}".lower())[-1:] for p in paths]
    if not all(words):
        return {"all": paths}
    return {name: [p for p, word in zip(paths, words, strict=True) if word == [name]] for name in dict.fromkeys(w for (w,) in words)}


def _open_tar(spec, pattern, split):
    from ssljax.data import tar

    splits = _tar_splits(spec, pattern)
    paths = [path for files in splits.values() for path in files]
    about = dict(zip(paths, tar.index_all(spec, paths), strict=True))
    fields = tar.fields(spec, list(about.values()))
    counts = {name: sum(about[path]["records"] for path in files) for name, files in splits.items()}
    ids = _ids(spec, split, counts)
    lengths = {path: about[path]["records"] for path in paths}
    shards = [Shard(n, functools.partial(tar.records, path, n, fields)) for path, n in lengths.items() if n]
    fingerprint = _digest(*((path.name, path.stat().st_size, n) for path, n in lengths.items()))
    return _part(Source(spec, sum(counts.values()), fields, fingerprint, None, shards=tuple(shards)), ids)


# -------------------------------------------------------------------------------------------------------------------- mix


def _parse_mix(spec, rest):
    """ "0.7*folder:A+0.3*scenes/photo" -> [(7000, "folder:A"), (3000, "scenes/photo")]: weights in MIX_BLOCK-ths."""
    parts = [part.partition("*")[::2] for part in re.split(r"\+(?=\s*[\d.]+(?:e-?\d+)?\*)", rest)]
    try:
        weights = np.array([float(weight) for weight, _ in parts])
        if not (np.isfinite(weights).all() and (weights > 0).all()):
            raise ValueError
    except ValueError:
        raise UserError(f"data source {spec!r}: write mix:0.7*folder:A+0.3*scenes/photo, each weight a number above 0") from None
    shares = weights / weights.sum() * MIX_BLOCK
    counts = np.floor(shares).astype(int)
    counts[np.argsort(counts - shares, kind="stable")[: MIX_BLOCK - counts.sum()]] += 1  # largest remainders
    for count, (weight, part) in zip(counts, parts, strict=True):
        kind, _ = _kind(part)
        if kind in ("mix", "tar"):
            why = f"it is a stream: {_PREPARE}" if kind == "tar" else "write its parts out, with their weights"
            raise UserError(f"data source {spec!r}: {part!r} cannot be part of a mixture; {why}")
        if count < 1:
            raise UserError(f"data source {spec!r}: the weight {weight} of {part!r} is less than 1/{MIX_BLOCK} of the whole")
    return [(int(count), part) for count, (_, part) in zip(counts, parts, strict=True)]


def _open_mix(spec, rest, split):
    counts, parts = zip(*[(count, open(part, split)) for count, part in _parse_mix(spec, rest)], strict=True)
    for part in parts:
        if part.shards:
            raise UserError(f"data source {spec!r}: {part.name!r} is a stream and cannot be part of a mixture; {_PREPARE}")
    pictures = [part.fields["image"] for part in parts]
    alike = all(p == pictures[0] for p in pictures)
    fields = {"image": pictures[0] if alike else Field("image", encoded=True)}
    for key, field in parts[0].fields.items():  # what all of them have; classes that differ are put together
        if key != "image" and all(key in part.fields and part.fields[key].kind == field.kind for part in parts):
            fields[key] = Field(field.kind, tuple(dict.fromkeys(name for part in parts for name in part.fields[key].classes)))
    numbers = [
        {key: [field.classes.index(name) for name in part.fields[key].classes] for key, field in fields.items() if field.kind == "label"}
        for part in parts
    ]

    def mapped(which, record):
        out = {key: record[key] for key in ("file", "problem") if key in record}
        for key, field in fields.items():
            out[key] = numbers[which][key][int(record[key])] if field.kind == "label" and record[key] >= 0 else record[key]
        if fields["image"].encoded and not pictures[which].encoded:
            out["image"] = encode_image(record["image"], "bmp")
        return out

    ends = np.cumsum([len(part) for part in parts])

    def fetch(wanted):
        wanted = np.asarray(wanted, np.int64)
        which = np.searchsorted(ends, wanted, "right")
        out = [None] * len(wanted)
        for i in np.unique(which).tolist():
            places = np.flatnonzero(which == i).tolist()
            for place, record in zip(places, parts[i].__getitems__(wanted[places] - (ends[i] - len(parts[i]))), strict=True):
                out[place] = mapped(i, record)
        return out

    fingerprint = _digest(*counts, *(part.fingerprint for part in parts))
    return Source(spec, int(ends[-1]), fields, fingerprint, fetch, parts=tuple((len(p), c) for p, c in zip(parts, counts, strict=True)))


_OPEN = {
    "tfds": _open_tfds, "folder": _open_folder, "synthetic": _open_synthetic, "arrayrecord": _open_array_record, "tar": _open_tar,
    "mix": _open_mix,
}  # fmt: skip
_SPECS = "tfds:NAME, folder:PATH, arrayrecord:PATH, tar:GLOB, mix:0.7*SPEC+0.3*SPEC, scenes/plain or scenes/photo"
_PREPARE_COMMAND = "`python -m ssljax.data.prepare`"
_PREPARE = f"{_PREPARE_COMMAND} makes ArrayRecord of it, which is read at random and resumes exactly"
