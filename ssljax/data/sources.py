"""Where records come from, behind one small interface with random access.

A spec names a source, a split names a part of it, as TFDS spells it:

    scenes/plain, scenes/photo   the embedded data, made on first use (`tfds:scenes/plain` is the same)
    tfds:NAME[/CONFIG][:VERSION] a data set that TFDS has prepared under $TFDS_DATA_DIR, default ~/tensorflow_datasets
    folder:PATH                  images in class subfolders or flat; a captions.csv or captions.jsonl beside them
    synthetic:n=64,height=32-80,width=32-80,classes=10,words=3-8     made-up records of declared features, for tests

    train   test   train[:90%]   train[90%:]   train[100:200]   train+test
"""

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from ssljax.data import scenes_recipe
from ssljax.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
DECODED_LIMIT = 256 * 1024**2  # bytes of pixels: below it, a data set of one image size is decoded once, on opening
MEMORY_LIMIT = 2 * 1024**3  # bytes of a data set without random access that may be read into memory


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
class Source:
    """`len(source)` records; `source.__getitems__(ids)` reads any of them, in the order asked for, from any thread.

    fields: {key of a record: Field}, the image under "image". fingerprint: hex, equal if and only if the same records are meant.
    """

    name: str
    length: int
    fields: dict[str, Field]
    fingerprint: str
    fetch: Callable[[Sequence[int]], list[dict]] = dataclasses.field(repr=False)

    def __len__(self):
        return self.length

    def __getitems__(self, ids):
        return self.fetch([int(i) for i in ids])

    def labels(self):
        """Names of the label fields; the first is what "label" means when no other is asked for."""
        names = [name for name, field in self.fields.items() if field.kind == "label"]
        return sorted(names, key=lambda name: name != "label")


def open(spec, split):
    """The source that `spec` and `split` name (see the module). Raises UserError as `check` does."""
    kind, rest = _kind(spec)
    return {"tfds": _open_tfds, "folder": _open_folder, "synthetic": _open_synthetic}[kind](spec, rest, split)


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
    elif _is_scenes(rest):
        _known_splits(spec, split, scenes_recipe.COUNTS)
    else:
        _known_splits(spec, split, _tfds_info(_tfds_directory(spec, rest))["splits"])


# ---------------------------------------------------------------------------------------------------------------- splits


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


def _select(split, counts):
    """Split -> [(name, ids)] over splits of the given sizes."""
    return [(name, np.arange(*slice_bounds(low, high, counts[name]))) for name, low, high in parse_split(split)]


def _kind(spec):
    if not isinstance(spec, str) or not spec:
        raise UserError(f"data source {spec!r} is not a spec; write tfds:NAME, folder:PATH, scenes/plain or scenes/photo")
    if _is_scenes(spec):
        return "tfds", spec
    kind, colon, rest = spec.partition(":")
    if not colon or kind not in ("tfds", "folder", "synthetic"):
        raise UserError(f"data source {spec!r} is unknown; write tfds:NAME, folder:PATH, scenes/plain or scenes/photo")
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
    keep = {"image", "caption", *scenes_recipe.CLASSES.get(config, ())}
    values = {key: value for key, value in scenes_recipe.make(config, split, n).items() if key in keep}
    values = {key: values[key] for key in ["image", *scenes_recipe.CLASSES[config], "caption"] if key in values}
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


def subset(source, most):
    """`source` with at most so many records (0: all), a fixed random choice of them in their order."""
    if not most or most >= len(source):
        return source
    return _part(source, np.sort(np.random.default_rng(0).permutation(len(source))[:most]))


def _part(source, ids):
    """The records `ids` (int array) of a source, as a source."""

    def fetch(wanted):
        return source.fetch([int(ids[i]) for i in wanted])

    return dataclasses.replace(source, length=len(ids), fetch=fetch, fingerprint=_digest(source.fingerprint, ids.tobytes()))


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
            record = {"image": (root / file).read_bytes()}
        except OSError:
            record = {"image": b""}  # an unreadable file is a broken image, and the run goes on
        if labelled:
            record["label"] = number[file.split("/")[0]]
        if captioned:
            record["caption"] = caption
        return record

    several = len(listed) > 1  # the folder's own place and name are no part of what it holds
    identity = [(root.name if several else "", file, (root / file).stat().st_size, caption) for root, file, caption in chosen]
    return Source(spec, len(chosen), fields, _digest(names, *identity), fetch)


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
        raise UserError(
            f"data source {spec!r} is {held / 1024**3:.1f} GiB of {builder.info.file_format.value}, which has no random access; "
            f"prepare it again with `tfds build {rest.partition(':')[0]} --file_format=array_record`"
        )
    rows = [record(r) for r in tfds.as_numpy(builder.as_dataset(split=split, decoders=decoders, shuffle_files=False))]
    return Source(spec, count, fields, fingerprint, lambda ids: [rows[i] for i in ids])


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
