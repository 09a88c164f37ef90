"""From a source to batches: stateless order, decode, crop, resize, flip; uint8 out. tf.data inside, numpy outside.

Order. Position p = step * batch + i counts the examples of a run; epoch, offset = divmod(p, n); the example is
index_shuffle(offset; seed, epoch), a bijection of 0..n-1 that costs no memory. So a batch is a function of (seed, step) alone: the same
on any number of processes and after any restart, with no iterator state to save. A mixture draws its source by the same kind of bijection.
A stream (tar shards) is read in windows, each shuffled; its order is a function of (seed, step, process, number of processes).

Randomness. Every draw of an example is a function of (seed, epoch, id, group of views, view), through stateless ops.

A broken image becomes zeros with valid=False in its own place: nothing else moves. `bad` says how they are counted and named.
"""

import collections
import itertools
import math
import queue
import threading
import time
import weakref
import zlib

import numpy as np

from ssljax.data import images as front
from ssljax.data.bad import BadExamples
from ssljax.data.images import MAX_PIXELS
from ssljax.data.sources import MIX_BLOCK, encode_image, import_tensorflow
from ssljax.data.sources import arrays as arrays_source
from ssljax.errors import UserError

CHUNK = 64  # records a read
WINDOW = 1024  # records of a stream that are held, encoded, and shuffled among each other
_ROUNDS, _SALT = 4, 498247692  # what tf.random.experimental.index_shuffle hands to its op


def train_batches(
    source, *, batch, seed, start_step=0, steps=None, crop="host", views=None, image_size=None, tokenizer=None,
    text_key="caption", label=None, process_index=0, process_count=1, threads=None, bad=None,
):  # fmt: skip
    """This process's rows of the global batches start_step, start_step + 1, ...

    Args:
      source: a `sources.Source`. batch: global batch. seed: of the order and of every draw. steps: number of batches, None for endless.
      crop: "host": RandomResizedCrop and flip here, per group of views. "device": whole images of one size.
      views: crop="host": {group: {"count", "size", "scale": (lo, hi), "ratio": (3/4, 4/3), "flip": 0.5}}; the group's name is the batch's
        key; other keys of a group are the device's and are passed over.
      image_size: crop="device": images of another size are resized (short side) and centre cropped to it; None: the source's own.
      tokenizer: gives "text" from the field `text_key`. label: the field that becomes "label"; default the first label, if any.
      process_index, process_count: rows [index, index + 1) * batch / count of each global batch.
      threads: decoding threads, None or 0 for as many as tf.data sees fit. bad: a `bad.BadExamples` that counts and names broken images.
    Returns:
      Batches: an iterator of dicts, leading axis b = batch / process_count:
        "views" uint8 (b, V, S, S, 3) and further groups, with `boxes` their "views_box" float32 (b, V, 4), or "image" uint8 (b, H, W, 3);
        "id", "epoch" int32 (b,); "valid" bool (b,);
        "label" int32 (b,); "text" int32 (b, T).
    Raises:
      UserError: a batch that does not divide, an unknown crop, view group, label or text field, no image size, fewer shards of a stream
        than processes; while iterating, what `bad` raises.
    """
    rows = _rows(batch, process_index, process_count)
    label, text_key = _fields(source, label, text_key, tokenizer)
    if crop == "host":
        groups = {name: _group(name, group) for name, group in (views or {}).items()}
        if not groups:
            raise UserError("crop='host' needs at least one group of views, e.g. augment.views.count=2, augment.views.size=224")
    elif crop == "device":
        groups, size = None, _device_size(source, image_size)
    else:
        raise UserError(f"data.crop={crop!r} must be host or device")

    tf = import_tensorflow()
    n = len(source)
    if n >= 2**31:
        raise UserError(f"data source {source.name!r} has {n} records; ids are 32 bits wide")

    if 0 < len(source.shards) < process_count:
        raise UserError(f"{source.name!r} has {len(source.shards)} shards for {process_count} processes: each reads shards of its own")
    order = _order(tf, source, seed)

    def positions(step):
        return order(step * batch + tf.range(rows.start, rows.stop, dtype=tf.int64))

    def images(record):
        if groups is None:
            return {"image": _whole(tf, record["image"], size)}
        return _views(tf, record["image"], groups, (seed, record["epoch"], record["id"]))

    if groups is None:
        blank = {"image": (*size, 3)}
    else:
        blank = {name: (g["count"], g["size"], g["size"], 3) for name, g in groups.items()}
        blank |= {f"{name}_box": (g["count"], 4) for name, g in groups.items() if g["boxes"]}
    reader = _Reader(tf, source, label, text_key, tokenizer)
    # Pixels in memory that the host has nothing to do to stay whole batches, at the speed of a copy.
    ready = groups is None and source.fields["image"].shape == (*size, 3) and not source.fields["image"].encoded and not source.shards
    stop = np.iinfo(np.int64).max if steps is None else start_step + steps

    def build(step, guard):
        if source.shards:
            records = reader.stream(lambda: _shuffled_stream(source, seed, process_index, process_count, step * len(rows)))
            return _finish(tf, _one_by_one(tf, records, images, blank, guard, len(rows), threads).take(stop - step), threads)
        dataset = tf.data.Dataset.range(step, stop).map(positions)
        if ready:
            return _finish(tf, dataset.map(reader.read), threads)
        return _finish(tf, _one_by_one(tf, reader.each(dataset, len(rows), threads), images, blank, guard, len(rows), threads), threads)

    return Batches(build, start_step, reader, bad=bad)


def eval_batches(
    source, *, batch, image_size, tokenizer=None, text_key="caption", label=None, extra=(), ratio=1.0,
    process_index=0, process_count=1, threads=None,
):  # fmt: skip
    """Every record once, in the source's order, whole and centred.

    The short side is resized to ratio * image_size, then the centre is cropped: ratio=256/224 is the usual one for photographs, 1.0 keeps
    everything. The last batch is filled up with valid=False (id -1, zeros), so all processes see equally many batches of one shape.
    extra: further label fields, each under its own name. Other arguments, and what it returns, as `train_batches`, without "epoch":
    {"image" uint8 (b, S, S, 3), "id", "valid", "label", "text", *extra}.
    """
    rows = _rows(batch, process_index, process_count)
    label, text_key = _fields(source, label, text_key, tokenizer)
    for name in extra:
        _fields(source, name, text_key, None)
    tf = import_tensorflow()
    n = len(source)

    def positions(step):
        p = step * batch + tf.range(rows.start, rows.stop, dtype=tf.int64)
        return tf.zeros_like(p), tf.where(p < n, p, -1)

    def images(record):
        return {"image": _whole(tf, record["image"], (image_size, image_size), ratio)}

    reader = _Reader(tf, source, label, text_key, tokenizer, extra)
    blank = {"image": (image_size, image_size, 3)}

    def build(step, guard):
        if source.shards:
            records = reader.stream(lambda: _stream_once(source, batch, rows, step))
        else:
            records = reader.each(tf.data.Dataset.range(step, math.ceil(n / batch)).map(positions), len(rows), threads)
        return _finish(tf, _one_by_one(tf, records, images, blank, guard, len(rows), threads), threads)

    return Batches(build, 0, reader, drop=("epoch",))


def array_batches(
    values, *, batch, seed, start_step=0, steps=None, tokenizer=None, text_key="caption", label=None,
    process_index=0, process_count=1,
):  # fmt: skip
    """The batches of `train_batches(crop="device")` from arrays in memory, without TensorFlow.

    values: a dict as `sources.arrays` takes it. Stateless in the same sense, but the order of an epoch is numpy's
    `default_rng([seed, epoch]).permutation(n)`, not that of `train_batches`.
    """
    source = arrays_source({key: v for key, v in values.items() if key in ("image", "label", label, text_key)})
    rows = _rows(batch, process_index, process_count)
    label, text_key = _fields(source, label, text_key, tokenizer)
    n, image = len(source), np.ascontiguousarray(np.broadcast_to(_rgb(values["image"]), (len(source), *source.fields["image"].shape)))
    labels = None if label is None else np.asarray(values[label], np.int32)
    text = None if tokenizer is None else tokenizer(list(values[text_key]))
    orders = collections.OrderedDict()

    def order(epoch):
        if epoch not in orders:
            orders[epoch] = np.random.default_rng([seed, epoch]).permutation(n)
            if len(orders) > 2:  # a batch at the seam needs two
                orders.popitem(last=False)
        return orders[epoch]

    step = start_step
    while steps is None or step < start_step + steps:
        epoch, offset = np.divmod(step * batch + np.arange(rows.start, rows.stop), n)
        ids = np.array([order(e)[o] for e, o in zip(epoch.tolist(), offset.tolist(), strict=True)])
        out = {"image": image[ids], "id": np.int32(ids), "epoch": np.int32(epoch), "valid": np.ones(len(ids), bool)}
        if labels is not None:
            out["label"] = labels[ids]
        if text is not None:
            out["text"] = text[ids]
        yield out
        step += 1


def array_eval_batches(values, *, batch, process_index=0, process_count=1):
    """The batches of `eval_batches` from arrays in memory, without TensorFlow: nothing is resized.

    values: {"image": uint8 (N, H, W, 3), or any other arrays of N rows}; each comes cut into rows under its own name, with "id" and
    "valid"; the last batch is filled up with zeros, id -1 and valid=False.
    """
    rows = _rows(batch, process_index, process_count)
    n = len(next(iter(values.values())))
    values = {**{key: np.asarray(v) for key, v in values.items()}, "id": np.arange(n, dtype=np.int32), "valid": np.ones(n, bool)}
    for start in range(0, n, batch):
        mine = slice(start + rows.start, start + rows.stop)
        out = {}
        for key, array in values.items():
            part = array[mine]
            empty = np.full((len(rows) - len(part), *array.shape[1:]), -1 if key == "id" else 0, array.dtype)
            out[key] = np.concatenate([part, empty])
        yield out


class Batches:
    """An iterator of numpy dicts that counts the broken images it has passed (`broken`), keeps the ids of the first hundred (`broken_ids`)
    and tells them to `bad`, a `BadExamples`. busy: {"read", "decode"}, seconds spent so far, summed over threads.

    build(step, guard) -> tf.data.Dataset of the batches from `step` on. A failing op ends a dataset, and guarding each image against it
    costs half a millisecond an image. So the first failure, not the start, buys that: the dataset is built again at the step that
    failed, guarded. The order being stateless, nobody sees the seam.
    """

    def __init__(self, build, step, reader, drop=(), bad=None):
        self.broken, self.broken_ids, self.bad = 0, [], bad or BadExamples()
        self.busy = {"read": 0.0, "decode": 0.0}
        self._build, self._step, self._reader, self._drop, self._guarded = build, step, reader, {*drop, "seconds"}, False
        self._iterator = build(step, False).as_numpy_iterator()
        self._failure = import_tensorflow().errors.OpError

    def __iter__(self):
        return self

    def __next__(self):
        try:
            batch = next(self._iterator)
        except self._failure:
            if self._guarded:
                raise
            self._guarded, self._iterator = True, self._build(self._step, True).as_numpy_iterator()
            batch = next(self._iterator)
        self._step += 1
        self.busy["read"] = self._reader.seconds
        self.busy["decode"] += float(np.sum(batch.get("seconds", 0.0)))
        batch = {key: value for key, value in batch.items() if key not in self._drop}
        bad = batch["id"][~batch["valid"] & (batch["id"] >= 0)]
        self.broken += len(bad)
        self.broken_ids += bad[: 100 - len(self.broken_ids)].tolist()
        self.bad.update(bad.tolist(), int(np.sum(batch["id"] >= 0)), self._reader.why)
        return batch


def prefetch(iterator, put, depth=2, busy=None):
    """`put(batch)` of every batch of `iterator`, made by a background thread up to `depth` ahead.

    Args:
      put: moves a batch to the devices (or returns it as it is). depth: batches that may wait, at least 1. busy: `Batches.busy` of
        the batches that `iterator` hands on, to tell reading from decoding.
    Returns:
      Prefetch: an iterator. Its `stall_seconds` grows by the time the consumer waited, the first batch included; `stage_seconds` and
      `blame` say for what. An exception in `iterator` or `put` is raised where its batch would have come. `close()`, leaving a `with`
      block, dropping the last reference and the interpreter's exit all stop the thread.
    """
    return Prefetch(iterator, put, depth, busy)


class Prefetch:
    """See `prefetch`."""

    def __init__(self, iterator, put, depth=2, busy=None):
        if depth < 1:
            raise UserError(f"data.prefetch={depth} must be at least 1")
        self.stall_seconds = 0.0
        self._busy, self._spent = busy or {}, {"host": 0.0, "transfer": 0.0}
        self._marks = collections.deque(maxlen=20)
        self._ready, self._done = queue.SimpleQueue(), False
        self._room, stop = threading.Semaphore(depth), threading.Event()
        # The thread holds no reference to self, so that dropping self can stop it.
        work = (iterator, put, self._ready, self._room, stop, self._spent)
        thread = threading.Thread(target=_fill, args=work, name="prefetch", daemon=True)
        thread.start()
        self._finalizer = weakref.finalize(self, _stop, thread, self._room, stop)

    def __iter__(self):
        return self

    def __next__(self):
        if self._done:
            raise StopIteration
        start = time.perf_counter()
        batch, error = self._ready.get()
        self.stall_seconds += time.perf_counter() - start
        if error is not None:
            self.close()
            raise error
        self._room.release()
        return batch

    @property
    def stage_seconds(self):
        """{"read", "decode", "transfer"}: seconds the thread has spent so far on each. What it waited for the host is split in
        proportion to the time that reading and decoding took in all their threads; where nobody measured them, it is all "read"."""
        busy = {stage: self._busy.get(stage, 0.0) for stage in ("read", "decode")}
        total = sum(busy.values())
        shares = {stage: seconds / total if total else float(stage == "read") for stage, seconds in busy.items()}
        return {**{stage: self._spent["host"] * share for stage, share in shares.items()}, "transfer": self._spent["transfer"]}

    def blame(self, stall):
        """`stall`, any measure of waiting, divided among the stages: {"stall_read", "stall_decode", "stall_transfer"}, which sum to it.
        In proportion to `stage_seconds` since the twentieth call before this one."""
        now = self.stage_seconds
        then = self._marks[0] if self._marks else dict.fromkeys(now, 0.0)
        self._marks.append(now)
        spent = {stage: max(now[stage] - then[stage], 0.0) for stage in now}  # a share that falls can take a stage's seconds back
        total = sum(spent.values()) or 1.0
        return {f"stall_{stage}": stall * seconds / total for stage, seconds in spent.items()}

    def close(self):
        """Stops the thread, after the batch it is at; what was ready is dropped."""
        self._done = True
        self._finalizer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _fill(iterator, put, ready, room, stop, spent):
    iterator = iter(iterator)
    while True:
        room.acquire()
        if stop.is_set():
            return
        try:
            start = time.perf_counter()
            batch = next(iterator)
            middle = time.perf_counter()
            batch = put(batch)
            spent["host"] += middle - start
            spent["transfer"] += time.perf_counter() - middle
            ready.put((batch, None))
        except BaseException as error:  # StopIteration among them: the consumer's turn to raise
            ready.put((None, error))
            return


def _stop(thread, room, stop):
    stop.set()
    room.release()
    if thread is not threading.current_thread():
        thread.join()


# ------------------------------------------------------------------------------------------------------ checks of arguments


def _rows(batch, process_index, process_count):
    """This process's rows of the global batch."""
    if batch < 1 or batch % process_count:
        raise UserError(f"batch={batch} must be a positive multiple of the {process_count} processes")
    if not 0 <= process_index < process_count:
        raise UserError(f"process index {process_index} is not among {process_count} processes")
    local = batch // process_count
    return range(process_index * local, (process_index + 1) * local)


def _fields(source, label, text_key, tokenizer):
    """(label field or None, text field or None), checked."""
    labels = source.labels()
    if label is not None and label not in labels:
        raise UserError(f"data.label={label!r}: data source {source.name!r} has the labels {', '.join(labels) or 'none'}")
    if tokenizer is None:
        text_key = None
    elif text_key not in source.fields or source.fields[text_key].kind != "text":
        texts = [name for name, field in source.fields.items() if field.kind == "text"]
        raise UserError(f"data.caption={text_key!r}: data source {source.name!r} has the texts {', '.join(texts) or 'none'}")
    return label if label is not None else (labels or [None])[0], text_key


def _group(name, group):
    """A group of views with the host's keys, checked and completed."""
    out = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5, "boxes": False}
    out.update({key: group[key] for key in ("count", "size", "scale", "ratio", "flip", "boxes") if key in group})
    for key in ("count", "size"):
        if not isinstance(out.get(key), int) or out[key] < 1:
            raise UserError(f"augment.{name}.{key}={out.get(key)!r} must be a whole number of at least 1")
    (low, high), (narrow, wide) = out["scale"], out["ratio"]
    if not 0 < low <= high <= 1:
        raise UserError(f"augment.{name}.scale={tuple(out['scale'])} must be shares of the area, 0 < lo <= hi <= 1")
    if not 0 < narrow <= wide:
        raise UserError(f"augment.{name}.ratio={tuple(out['ratio'])} must be width / height, 0 < lo <= hi")
    if not 0 <= out["flip"] <= 1:
        raise UserError(f"augment.{name}.flip={out['flip']!r} must be a probability")
    return out


def _device_size(source, image_size):
    """(H, W) of the images handed to the device."""
    if image_size is not None:
        return (image_size, image_size)
    shape = source.fields["image"].shape
    if shape is None:
        raise UserError(f"data.image_size is needed: data.crop=device wants one size, and the images of {source.name!r} differ")
    return shape[:2]


def _rgb(image):
    image = np.asarray(image)
    return image[..., None] if image.ndim == 3 else image


# ------------------------------------------------------------------------------------------------------------ tf.data stages


def _order(tf, source, seed):
    """A map from positions p (int64, (b,)) to (epochs, ids), for a source with random access."""
    n = len(source)
    if not source.parts:
        return lambda p: (p // n, _index_shuffle(tf, p % n, seed, p // n, n))
    lengths, counts = (np.array(x, np.int64) for x in zip(*source.parts, strict=True))
    ends, firsts = np.cumsum(counts), np.cumsum(lengths) - lengths

    def mixed(p):
        # Each MIX_BLOCK positions are dealt out to the parts by a bijection. So the k-th draw from a part is known without those before
        # it, and k runs through the part's epochs as p does through those of a single source.
        block = p // MIX_BLOCK
        slot = _index_shuffle(tf, p % MIX_BLOCK, seed, -1 - block, MIX_BLOCK)
        part = tf.searchsorted(ends, slot, side="right")
        length, count, first = (tf.gather(x, part) for x in (lengths, counts, firsts))
        k = block * count + slot - tf.gather(ends - counts, part)
        epoch = k // length
        return epoch, first + _index_shuffle(tf, k % length, seed, epoch, length)

    return mixed


def _index_shuffle(tf, offset, seed, epoch, n):
    """tf.random.experimental.index_shuffle(offset, [seed, epoch], n - 1), elementwise: its wrapper pads seeds of several rows wrongly."""
    seeds = tf.stack([tf.fill(tf.shape(epoch), tf.constant(x, tf.int64)) for x in (_SALT, seed)] + [epoch], axis=-1)  # (b, 3)
    last = tf.broadcast_to(tf.constant(n, tf.int64) - 1 if isinstance(n, int) else n - 1, tf.shape(offset))
    return tf.raw_ops.RandomIndexShuffle(index=offset, seed=seeds, max_index=last, rounds=_ROUNDS)


def _shuffled_stream(source, seed, index, count, skip):
    """(epoch, id, record) of a stream, endlessly, from this process's `skip`-th record on.

    The process reads shards index, index + count, ..., in an order of its own every epoch. Windows of WINDOW records are shuffled; all
    orders follow from (seed, epoch, index), so a restart reads the window it is in once more, and nothing else.
    """
    firsts = np.cumsum([0, *(shard.length for shard in source.shards)])
    mine = range(index, len(source.shards), count)
    total = sum(source.shards[i].length for i in mine)
    epoch, offset = divmod(skip, total)
    while True:
        order = [mine[i] for i in np.random.default_rng([seed, epoch, index]).permutation(len(mine))]
        window = offset // WINDOW
        records = _from(source, firsts, order, window * WINDOW)
        for start in range(window * WINDOW, total, WINDOW):
            held = list(itertools.islice(records, WINDOW))
            places = np.random.default_rng([seed, epoch, index, start]).permutation(len(held))
            yield from ((epoch, *held[i]) for i in places[max(offset - start, 0) :].tolist())
        epoch, offset = epoch + 1, 0


def _from(source, firsts, order, start):
    """(id, record) of shards in the given order, from the start-th record on."""
    for i in order:
        length = source.shards[i].length
        if start < length:
            yield from ((int(firsts[i]) + start + k, record) for k, record in enumerate(source.shards[i].read(start)))
        start = max(start - length, 0)


def _stream_once(source, batch, rows, step):
    """(0, id, record) of this process's rows of every batch from `step` on; (0, -1, None) for filling."""
    firsts = np.cumsum([0, *(shard.length for shard in source.shards)])
    for i, record in _from(source, firsts, range(len(source.shards)), step * batch):
        if i % batch in rows:
            yield 0, i, record
    yield from ((0, -1, None) for i in range(len(source), math.ceil(len(source) / batch) * batch) if i % batch in rows)


class _Reader:
    """read: a map from (epochs, ids) to records, by the chunk: "image", "id", "epoch", "valid", ["label"], ["text"], *extra; id -1 fills.

    seconds: how long it has read, over all threads. why(id): (file, reason) of a broken example.
    """

    def __init__(self, tf, source, label, text_key, tokenizer, extra=()):
        self.seconds = 0.0
        self._tf, self._source, self._tokenizer, self._text_key = tf, source, tokenizer, text_key
        self._labels = {**({"label": label} if label else {}), **{name: name for name in extra}}
        self._reasons, self._lock = {}, threading.Lock()
        field = source.fields["image"]
        black = np.zeros(field.shape or (1, 1, 3), np.uint8)
        self._encoded, self._black = field.encoded, encode_image(black, "png") if field.encoded else black
        # key: (type, shape of one) of what `_pack` returns
        self._kinds = {"image": (tf.string, ()) if field.encoded else (tf.uint8, field.shape), "valid": (tf.bool, ())}
        self._kinds |= {name: (tf.int32, ()) for name in self._labels}
        self._kinds |= {"text": (tf.int32, (tokenizer.length,))} if tokenizer is not None else {}
        self.read = tf.autograph.experimental.do_not_convert(self.read)

    def read(self, epochs, ids):
        tf = self._tf
        values = tf.numpy_function(self._read, [ids], [kind for kind, _ in self._kinds.values()], stateful=False)
        out = {key: tf.ensure_shape(v, (ids.shape[0], *shape)) for v, (key, (_, shape)) in zip(values, self._kinds.items(), strict=True)}
        return {**out, "id": tf.cast(ids, tf.int32), "epoch": tf.cast(epochs, tf.int32)}

    def each(self, dataset, rows, threads):
        """(epochs, ids) of each step -> records, one at a time."""
        return dataset.unbatch().batch(min(CHUNK, rows)).map(self.read, num_parallel_calls=threads or self._tf.data.AUTOTUNE).unbatch()

    def stream(self, records):
        """records() -> an iterator of (epoch, id, record). -> records, one at a time."""
        tf = self._tf

        def chunks():
            left = records()
            while True:
                start = time.perf_counter()
                chunk = list(itertools.islice(left, CHUNK))
                if not chunk:
                    return
                epochs, ids, read = zip(*chunk, strict=True)
                out = dict(zip(self._kinds, self._pack(ids, read), strict=True))
                self._add(time.perf_counter() - start)
                yield {**out, "id": np.int32(ids), "epoch": np.int32(epochs)}

        signature = {key: tf.TensorSpec((None, *shape), kind) for key, (kind, shape) in self._kinds.items()}
        signature |= {key: tf.TensorSpec((None,), tf.int32) for key in ("id", "epoch")}
        return tf.data.Dataset.from_generator(chunks, output_signature=signature).unbatch()

    def why(self, i):
        if i in self._reasons or self._source.fetch is None:
            return self._reasons.pop(i, (f"record {i}", "its pixels do not decode"))
        (record,) = self._source.__getitems__([i])
        return record.get("file", f"record {i}"), front.why(record["image"])

    def _read(self, ids):
        start = time.perf_counter()
        known = [i for i in ids if i >= 0]
        found = iter(self._source.__getitems__(known) if known else [])
        out = self._pack(ids, [next(found) if i >= 0 else None for i in ids])
        self._add(time.perf_counter() - start)
        return out

    def _add(self, seconds):
        with self._lock:
            self.seconds += seconds

    def _pack(self, ids, records):
        """Records, None for filling -> arrays, one a key of `_kinds`."""
        valid = np.array([r is not None for r in records])
        images = [self._black if r is None else r["image"] for r in records]
        if self._encoded:
            for row in np.flatnonzero(valid):
                images[row], reason = front.inspect(images[row])
                reason = records[row].get("problem") or reason
                if reason:
                    images[row], valid[row] = self._black, False
                    self._reasons[int(ids[row])] = (records[row].get("file", f"record {ids[row]}"), reason)
        out = [np.array(images, dtype=object) if self._encoded else np.stack(images), valid]
        out += [np.array([-1 if r is None else r[name] for r in records], np.int32) for name in self._labels.values()]
        if self._tokenizer is not None:
            out.append(self._tokenizer(["" if r is None else r[self._text_key] for r in records]))
        return out


def _one_by_one(tf, records, images, blank, guard, rows, threads):
    """Records -> batches of `rows` of them with images(record) in place of the image, and "seconds", what that took.

    With `guard`, zeros and valid=False where `images` fails: a failing op inside one element of an inner dataset only empties that one,
    and the zeros come next.
    """

    def attempt(record):
        good = tf.data.Dataset.from_tensors(record).map(lambda r: {**images(r), "valid": r["valid"]})
        zeros = {name: tf.zeros(shape, tf.float32 if name.endswith("_box") else tf.uint8) for name, shape in blank.items()}
        bad = tf.data.Dataset.from_tensors({**zeros, "valid": tf.constant(False)})
        return good.ignore_errors(log_warning=False).concatenate(bad).take(1).get_single_element()

    def replace(record):
        start = tf.timestamp()
        with tf.control_dependencies([start]):
            out = (attempt if guard else images)(record)
        with tf.control_dependencies(list(out.values())):
            seconds = tf.timestamp() - start
        return {**{k: v for k, v in record.items() if k != "image"}, **out, "seconds": seconds}

    parallel = threads or tf.data.AUTOTUNE
    dataset = records.map(tf.autograph.experimental.do_not_convert(replace), num_parallel_calls=parallel)
    return dataset.batch(rows, drop_remainder=True)


def _finish(tf, dataset, threads):
    options = tf.data.Options()
    options.deterministic = True
    options.threading.max_intra_op_parallelism = 1  # images are the parallelism
    if threads:
        options.threading.private_threadpool_size = threads
    return dataset.prefetch(2).with_options(options)


# ------------------------------------------------------------------------------------------------- decode, crop, resize, flip


def _shape(tf, image):
    """(height, width), of an encoded image without decoding its pixels where that can be had. Raises on what is no JPEG."""
    shape = tf.io.extract_jpeg_shape(image)
    with tf.control_dependencies([tf.debugging.assert_less_equal(shape[0] * shape[1], MAX_PIXELS)]):
        return tf.identity(shape[:2])


def _is_jpeg(tf, image):
    return tf.strings.substr(image, 0, 3) == b"\xff\xd8\xff"


def _decode(tf, image):
    """Bytes of a JPEG, PNG, WebP, BMP or GIF -> uint8 (H, W, 3); grey is repeated, alpha dropped, 16 bits become 8."""

    def other():
        # As many channels as the file has: asked for three, the WebP and BMP decoders refuse four.
        pixels = tf.io.decode_image(image, expand_animations=False)
        return tf.cond(tf.shape(pixels)[-1] < 3, lambda: tf.repeat(pixels[..., :1], 3, axis=-1), lambda: pixels[..., :3])

    def jpeg():
        with tf.control_dependencies([_shape(tf, image)]):
            return tf.io.decode_jpeg(image, channels=3)

    out = tf.cond(_is_jpeg(tf, image), jpeg, other)
    out.set_shape((None, None, 3))
    return out


def _whole(tf, image, size, ratio=1.0):
    """The image at (H, W): itself if it has that size, else the side that is shorter relative to (H, W) resized, and the centre cut."""
    if image.dtype == tf.string:
        image = _decode(tf, image)
    wanted = tf.constant(size, tf.int32)

    def fit():
        shape = tf.shape(image)[:2]
        scale = ratio * tf.reduce_max(tf.cast(wanted, tf.float64) / tf.cast(shape, tf.float64))
        big = tf.maximum(tf.cast(tf.round(scale * tf.cast(shape, tf.float64)), tf.int32), wanted)
        low = (big - wanted) // 2
        return _uint8(tf, tf.slice(_resize(tf, image, big), [low[0], low[1], 0], [*size, 3]))

    same = tf.reduce_all(tf.shape(image)[:2] == wanted)
    out = tf.cond(tf.logical_and(same, ratio == 1.0), lambda: image, fit)
    out.set_shape((*size, 3))
    return out


def _resize(tf, image, size):
    """uint8 (h, w, 3) -> float32 (*size, 3), bilinear; where it shrinks, with the filter widened so that nothing aliases."""
    # To enlarge, the other op gives the same numbers at a third of the time.
    shrinks = tf.reduce_any(tf.shape(image)[:2] > size)
    return tf.cond(shrinks, lambda: _antialiased(tf, image[None], size), lambda: _bilinear(tf, image[None], size))[0]


def _far(tf, shape, size):
    """bool, elementwise: is it a reduction by more than 2.25?"""
    return 4 * shape > 9 * tf.constant(size)


def _resize_fast(tf, image, size, far):
    """The same for training views, at a fifth of the time. Up to 2.25 a bilinear kernel weighs nearly every pixel, and on photographs is
    as near to a Lanczos reduction as the widened filter or nearer; beyond (`far`), sides are halved first, by means of neighbours;
    beyond 4.5, it is `_resize`."""
    image = tf.cast(image, tf.float32)[None]  # on float32 the op is vectorised: with the cast it takes half the time

    def halved():
        shape = tf.shape(image)[1:3]
        half = tf.where(_far(tf, shape, size), (shape + 1) // 2, shape)
        again = tf.reduce_any(_far(tf, half, size))
        return tf.cond(again, lambda: _antialiased(tf, image, size), lambda: _bilinear(tf, image, half))

    return _bilinear(tf, tf.cond(far, halved, lambda: image), size)[0]


def _antialiased(tf, images, size):
    scale = tf.cast(size, tf.float32) / tf.cast(tf.shape(images)[1:3], tf.float32)
    return tf.raw_ops.ScaleAndTranslate(
        images=images, size=size, scale=scale, translation=[0.0, 0.0], kernel_type="triangle", antialias=True
    )


def _bilinear(tf, images, size):
    return tf.raw_ops.ResizeBilinear(images=images, size=size, half_pixel_centers=True)


def _flipped(tf, image, flip):
    # A branch, and an image at a time: tf.where and reversing a batch cost more than the resize.
    return tf.cond(flip, lambda: tf.reverse(image, [1]), lambda: image)


def _uint8(tf, image):
    return tf.cast(tf.round(image), tf.uint8)  # an average of bytes: no clipping needed


def _views(tf, image, groups, key):
    """{group: uint8 (count, size, size, 3)} of one image, encoded or not, decoded once; of a JPEG only the box around all its crops.

    A group with `boxes` adds {group}_box float32 (count, 4): y0, x0, y1, x1 in shares of the image, x0 > x1 where a view is flipped."""
    seed, epoch, example = key

    def fold(seed, data):
        return tf.random.experimental.stateless_fold_in(seed, tf.cast(data, tf.int64))  # data's dtype is the new seed's

    base = fold(tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)]), example)

    def boxes(shape):
        return {name: _boxes(tf, fold(base, zlib.crc32(name.encode()) >> 1), shape, g) for name, g in groups.items()}

    def cut(pixels, origin, boxes, shape):
        """The views, from pixels whose upper left corner lies at `origin` of the image of `shape`."""
        out = {}
        for name, group in groups.items():
            corners, sizes, flips = boxes[name]
            zero, three = tf.zeros_like(corners[:, :1]), tf.fill(tf.shape(corners[:, :1]), 3)
            starts, extents = tf.concat([corners - origin, zero], 1), tf.concat([sizes, three], 1)
            far = tf.reduce_any(_far(tf, sizes, group["size"]), axis=1)
            views = [
                _flipped(tf, _uint8(tf, _resize_fast(tf, tf.slice(pixels, start, extent), [group["size"]] * 2, far)), flip)
                for start, extent, far, flip in zip(*map(tf.unstack, (starts, extents, far, flips)), strict=True)
            ]
            out[name] = tf.ensure_shape(tf.stack(views), (group["count"], group["size"], group["size"], 3))
            if group["boxes"]:
                ends = tf.concat([corners, corners + sizes], 1) / tf.tile(tf.cast(shape, tf.int32), [2])
                mirrored = tf.gather(ends, [0, 3, 2, 1], axis=1)
                out[f"{name}_box"] = tf.cast(tf.where(flips[:, None], mirrored, ends), tf.float32)
        return out

    def whole():
        pixels = _decode(tf, image) if image.dtype == tf.string else image
        shape = tf.shape(pixels)[:2]
        return cut(pixels, [0, 0], boxes(shape), shape)

    def part():
        shape = _shape(tf, image)
        drawn = boxes(shape)
        corners = tf.concat([corners for corners, _, _ in drawn.values()], 0)  # (all views, 2)
        ends = tf.concat([corners + sizes for corners, sizes, _ in drawn.values()], 0)
        low, high = tf.reduce_min(corners, 0), tf.reduce_max(ends, 0)
        pixels = tf.image.decode_and_crop_jpeg(image, tf.concat([low, high - low], 0), channels=3)
        return cut(pixels, low, drawn, shape)

    return tf.cond(_is_jpeg(tf, image), part, whole) if image.dtype == tf.string else whole()


def _boxes(tf, seed, shape, group):
    """RandomResizedCrop's law (Szegedy et al. 2015, section 6; torchvision's details): corners (top, left) and sizes (height, width),
    int32 (count, 2) both, and flips bool (count,).

    Area uniform in scale, log of width / height uniform in log ratio, ten tries to fit; else the central crop of the nearest ratio.
    Row v of the draws belongs to view v, whatever the count.
    """
    count, (low, high), (narrow, wide) = group["count"], group["scale"], group["ratio"]
    u = tf.random.stateless_uniform([count, 24], seed, dtype=tf.float32)
    height, width = tf.cast(shape[0], tf.float32), tf.cast(shape[1], tf.float32)
    area = (low + (high - low) * u[:, :10]) * height * width
    ratio = tf.exp(math.log(narrow) + (math.log(wide) - math.log(narrow)) * u[:, 10:20])
    w, h = tf.round(tf.sqrt(area * ratio)), tf.round(tf.sqrt(area / ratio))  # (count, 10)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = tf.argmax(tf.cast(fits, tf.int32), axis=1)
    found = tf.reduce_any(fits, axis=1)
    middle_h = tf.where(width < narrow * height, tf.round(width / narrow), height)
    middle_w = tf.where(width > wide * height, tf.round(height * wide), width)
    h = tf.where(found, tf.gather(h, first, batch_dims=1), middle_h)
    w = tf.where(found, tf.gather(w, first, batch_dims=1), middle_w)
    # Uniform over the whole pixels it can start at; the minimum guards against u * (room + 1) rounding up.
    top = tf.where(found, tf.minimum(tf.floor(u[:, 20] * (height - h + 1)), height - h), tf.floor((height - h) / 2))
    left = tf.where(found, tf.minimum(tf.floor(u[:, 21] * (width - w + 1)), width - w), tf.floor((width - w) / 2))
    corners, sizes = (tf.cast(tf.stack(pair, axis=1), tf.int32) for pair in ((top, left), (h, w)))
    return corners, sizes, u[:, 22] < group["flip"]
