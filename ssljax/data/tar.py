"""Webdataset tars: files that share a basename, one after the other, are a record. Streamed; nothing is ever written to disk.

    000017.jpg 000017.cls 000017.txt 000018.jpg ...        .cls a class number, .txt a caption, .json {"label": 3, "caption": "..."}

A tar may come from anyone. Members with absolute names or "..", links, devices and sizes above MEMBER_LIMIT are passed over; a damaged
archive ends where the damage begins. No name from inside is ever used as a path.
"""

import hashlib
import json
import os
import pathlib
import tarfile

from tqdm import tqdm

from ssljax.data.sources import IMAGE_SUFFIXES, Field, missing
from ssljax.errors import UserError

EXPANSION = 1100  # a member cannot be larger than so many times its archive: gzip reaches 1032
MEMBER_LIMIT = 256 * 2**20  # bytes: no photograph is larger, and a header may declare anything
TEXT_LIMIT = 2**20  # bytes of a .cls, .txt or .json
LABEL_LIMIT = 1_000_000
_TEXTS = ("cls", "txt", "json")


def members(path, wanted, problems):
    """(key, extension, bytes or None) of the members of a tar that may be part of a record, as they come.

    Bytes only of the extensions in `wanted`. problems: a list, to which what was passed over is added in words. Never raises.
    """
    last = -1
    try:
        most = EXPANSION * path.stat().st_size
        # A stream is read through; where the images are not wanted, their bytes are skipped if the file allows.
        mode = "r|*" if "jpg" in wanted else "r:*"
        with path.open("rb") as file, tarfile.open(fileobj=file, mode=mode, bufsize=2**18) as tar:
            while (member := tar.next()) is not None:
                if member.offset <= last or member.size < 0:  # a header that points back would be read for ever
                    raise tarfile.ReadError("members overlap")
                if member.size > most:  # the reader would seek for hours
                    raise tarfile.ReadError(f"{member.name[:200]!r} claims {member.size} bytes")
                last = member.offset
                tar.members = []  # the reader keeps all it has seen
                refused = _refused(member)
                if refused:
                    problems.append(f"{path.name}: {member.name[:200]!r}: {refused}")
                if refused is not None:
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                extension = extension.lower()
                data = tar.extractfile(member).read() if extension in wanted else None
                if data is not None and len(data) != member.size:
                    raise tarfile.ReadError("cut short")
                yield f"{folder}/{stem}", extension, data
    except Exception as error:  # tarfile raises all kinds on hostile bytes
        problems.append(f"{path.name}: ends early: {type(error).__name__}: {error}"[:300])


def _refused(member):
    """Why a member is passed over; "" for what is passed over without a word; None for a good one."""
    if member.isdir():
        return ""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "its name leads out of the archive"
    if not member.isreg() or member.issparse():
        return "neither a file nor a directory"
    extension = member.name.rpartition("/")[2].partition(".")[2].lower()
    if member.size > (TEXT_LIMIT if extension in _TEXTS else MEMBER_LIMIT):
        return f"{member.size} bytes are too many"
    return None


def _grouped(path, wanted, problems):
    """(key, {extension: bytes or None}) of the records of a tar: those that hold an image."""
    key, parts = None, {}
    for k, extension, data in members(path, wanted, problems):
        if k != key:
            if _image(parts):
                yield key, parts
            key, parts = k, {}
        parts.setdefault(extension, data)
    if _image(parts):
        yield key, parts


def _image(parts):
    """The extension of a record's image; None without one."""
    return next((e for e in parts if f".{e}" in IMAGE_SUFFIXES), None)


def index(path):
    """One pass over a tar, its images skipped over. -> {"records", "labels": highest or -1, "cls", "txt": how many have one,
    "json": keys of the first record's, "problems": [words]}. Never raises."""
    problems, out = [], {"records": 0, "labels": -1, "cls": 0, "txt": 0, "json": []}
    for _, parts in _grouped(path, ("cls", "json"), problems):
        out["records"] += 1
        out["cls"] += "cls" in parts
        out["txt"] += "txt" in parts
        values = _json(parts)
        if out["records"] == 1:
            out["json"] = [key for key, kind in (("label", int), ("caption", str)) if isinstance(values.get(key), kind)]
        out["labels"] = max(out["labels"], _label(parts, values))
    return {**out, "problems": problems}


def index_all(spec, paths):
    """`index` of every shard. What was learnt of a file is kept under ~/.cache/ssljax, so that only a run's first start reads them all."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ssljax" / "tar"
    out = []
    for path in tqdm(paths, f"counting the records of {spec}", unit="shard", leave=False, disable=None, delay=1):
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"data source {spec!r}: {path} cannot be read: {error.strerror}") from None
        known = cache / (hashlib.sha256(f"1 {path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest() + ".json")
        try:
            out.append(json.loads(known.read_text()))
        except (OSError, ValueError):
            out.append(index(path))
            try:
                known.parent.mkdir(parents=True, exist_ok=True)
                part = known.with_suffix(f".{os.getpid()}")
                part.write_text(json.dumps(out[-1]))
                part.replace(known)
            except OSError:
                pass  # it is only a cache
    return out


def fields(spec, indices):
    """The fields that the records of a set have: a label or a caption if every record has its file, or the first one's json names it."""
    records = sum(i["records"] for i in indices)
    if not records:
        problems = [problem for i in indices for problem in i["problems"]] or ["no member ends in " + ", ".join(sorted(IMAGE_SUFFIXES))]
        raise UserError(f"data source {spec!r} holds no record with an image: {problems[0]}")
    known = set(next(i["json"] for i in indices if i["records"]))
    out, highest = {"image": Field("image", encoded=True)}, max(i["labels"] for i in indices)
    if highest >= 0 and ("label" in known or sum(i["cls"] for i in indices) == records):
        out["label"] = Field("label", tuple(map(str, range(highest + 1))))
    if "caption" in known or sum(i["txt"] for i in indices) == records:
        out["caption"] = Field("text")
    return out


def records(path, length, fields, start=0):
    """Records start, start + 1, ..., length - 1 of a tar; empty images where it has become shorter than its index says."""
    done, problems, images = 0, [], {suffix[1:] for suffix in IMAGE_SUFFIXES}
    for key, parts in _grouped(path, {*images, *_TEXTS}, problems):
        if done >= length:
            return
        if done >= start:
            values = _json(parts)
            out = {"image": parts[_image(parts)], "file": f"{path.name}/{key.lstrip('/')}.{_image(parts)}"}
            if "label" in fields:
                out["label"] = _label(parts, values)
            if "caption" in fields:
                text = parts.get("txt") or str(values.get("caption", "")).encode()
                out["caption"] = text.decode("utf-8", "replace").strip()
            yield out
        done += 1
    for place in range(max(done, start), length):
        yield missing(fields, f"{path.name} record {place}", (problems or ["the shard has become shorter"])[-1])


def _json(parts):
    try:
        values = json.loads(parts.get("json") or b"{}")
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _label(parts, values):
    """The class number of a record, -1 for none or one that is no small number."""
    text = parts["cls"].decode("ascii", "replace").strip()[:20] if parts.get("cls") else values.get("label", -1)
    try:
        label = int(text)
    except (TypeError, ValueError, OverflowError):
        return -1
    return label if 0 <= label < LABEL_LIMIT else -1
