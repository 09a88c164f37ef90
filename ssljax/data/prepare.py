"""Turn a folder of images or a set of tars into sharded ArrayRecord: read at random, at speed, so that training resumes exactly.

python -m ssljax.data.prepare --source folder:PATH --out DIR
python -m ssljax.data.prepare --source 'tar:PATH/*.tar' --out DIR --shards 64
python -m ssljax.train --config ... --config.data.source=arrayrecord:DIR --workdir ...

Images are copied as they are, byte for byte; labels, captions and splits come along. A folder is shuffled on the way (always alike),
so that any slice of it, such as train[:10%], holds all classes. DIR must not exist: it appears when all is written, never before.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import shutil

import numpy as np
from absl import flags
from tqdm import tqdm

from ssljax import cli
from ssljax.data import sources
from ssljax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("source", None, "folder:PATH or tar:GLOB (quoted, so that the shell leaves it alone)", flag_values=FLAGS)
flags.DEFINE_string("out", None, "directory to make", flag_values=FLAGS)
flags.DEFINE_integer("shards", 0, "files a split; 0: about 256 MiB each", flag_values=FLAGS)

SHARD_BYTES = 256 * 2**20
CHUNK = 64  # records a read


def prepare(source, out, shards=0):
    """Write what the spec `source` names to the directory `out`. -> {split: records}.

    A record is a msgpack map {"image": bytes, "file": str, "label": int, "caption": str}, as far as the source has them; `dataset.json`
    declares the fields, splits and shards. Everything goes to a hidden directory beside `out`, which is renamed when complete.
    Raises UserError: another kind of source, an `out` that exists, a disk that is full.
    """
    if not str(source).startswith(("folder:", "tar:")):
        raise UserError(f"--source={source!r}: write folder:PATH or tar:GLOB")
    if shards < 0:
        raise UserError(f"--shards={shards} must be at least 1, or 0 to choose by size")
    out = pathlib.Path(out).expanduser()
    if out.exists():
        raise UserError(f"--out={out} exists already; remove it, or give another directory")
    opened = {split: sources.open(source, split) for split in sources.stored_splits(source)}
    part = out.parent / f".{out.name}.incomplete-{os.getpid()}"
    try:
        part.mkdir(parents=True)
        about = {"format": sources.ARRAY_RECORD, "version": 1, "source": source, "fields": {}, "splits": {}}
        for source_of_split in opened.values():
            for key, field in source_of_split.fields.items():
                about["fields"][key] = {"kind": field.kind, **({"classes": field.classes} if field.classes else {})}
        digest = hashlib.sha256(json.dumps(about["fields"], sort_keys=True).encode())
        with tqdm(total=sum(map(len, opened.values())), desc=f"writing {out}", unit="record", disable=None) as bar:
            for split, records in opened.items():
                about["splits"][split] = _write(part, split, records, shards, digest, bar)
        about["fingerprint"] = digest.hexdigest()
        (part / "dataset.json").write_text(json.dumps(about, indent=1))
        part.rename(out)
    except (OSError, RuntimeError) as error:  # of Python or of the writer
        raise UserError(f"--out={out} could not be written: {error}") from None
    finally:  # after an interruption as well; after a kill a hidden directory is left, which nothing reads
        shutil.rmtree(part, ignore_errors=True)
    return {split: len(records) for split, records in opened.items()}


def _write(directory, split, source, shards, digest, bar):
    """One split. -> [(file name, records)]."""
    import msgpack
    from array_record.python.array_record_module import ArrayRecordWriter

    n = len(source)
    if not shards:
        few = [len(record["image"]) for record in itertools.islice(_records(source), CHUNK)]
        shards = round(n * sum(few) / len(few) / SHARD_BYTES)
    count = max(1, min(shards, n))
    records, out = _records(source), []
    for i in range(count):
        name, length = f"{split}-{i:05d}-of-{count:05d}.arrayrecord", (i + 1) * n // count - i * n // count
        with contextlib.closing(ArrayRecordWriter(os.fspath(directory / name), "group_size:1,uncompressed")) as writer:
            for _ in range(length):
                raw = msgpack.packb(next(records))
                digest.update(hashlib.sha256(raw).digest())
                writer.write(raw)
                bar.update()
        out.append((name, length))
    return out


def _records(source):
    """The records of a source: a stream's in its own order, others shuffled."""
    if source.shards:
        for shard in source.shards:
            yield from shard.read(0)
        return
    order = np.random.default_rng(0).permutation(len(source))
    for start in range(0, len(order), CHUNK):
        yield from source.__getitems__(order[start : start + CHUNK])


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    for name in ("source", "out"):
        if not FLAGS[name].value:
            raise UserError(f"--{name} is missing: {FLAGS[name].help}")
    counts = prepare(FLAGS.source, FLAGS.out, FLAGS.shards)
    told = ", ".join(f"{split} {n}" for split, n in counts.items())
    print(f"done: {told} records; train on them with --config.data.source=arrayrecord:{FLAGS.out}")


if __name__ == "__main__":
    cli.command(main)
