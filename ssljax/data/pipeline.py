"""From a source to batches: stateless order, decode, crop, resize, flip; uint8 out. tf.data inside, numpy outside.

Order. Position p = step * batch + i counts the examples of a run; epoch, offset = divmod(p, n); the example is
index_shuffle(offset; seed, epoch), a bijection of 0..n-1 that costs no memory. So a batch is a function of (seed, step) alone: the same
on any number of processes and after any restart, with no iterator state to save.

Randomness. Every draw of an example is a function of (seed, epoch, id, group of views, view), through stateless ops.

A broken image becomes zeros with valid=False in its own place: nothing else moves.
"""

import collections
import math
import queue
import threading
import time
import weakref
import zlib

import numpy as np

from ssljax.data.sources import arrays as arrays_source
from ssljax.data.sources import encode_image, import_tensorflow
from ssljax.errors import UserError

CHUNK = 64  # records a read
MAX_PIXELS = 64 * 2**20  # a JPEG header may ask for gigabytes; more than this is broken
_ROUNDS, _SALT = 4, 498247692  # what tf.random.experimental.index_shuffle hands to its op


def train_batches(
    source, *, batch, seed, start_step=0, steps=None, crop="host", views=None, image_size=None, tokenizer=None,
    text_key="caption", label=None, process_index=0, process_count=1, threads=None,
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
      threads: decoding threads, None for as many as tf.data sees fit.
    Returns:
      Batches: an iterator of dicts, leading axis b = batch / process_count:
        "views" uint8 (b, V, S, S, 3) and further groups, or "image" uint8 (b, H, W, 3); "id", "epoch" int32 (b,); "valid" bool (b,);
        "label" int32 (b,); "text" int32 (b, T).
    Raises:
      UserError: a batch that does not divide, an unknown crop, view group, label or text field, no image size.
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

    def positions(step):
        p = step * batch + tf.range(rows.start, rows.stop, dtype=tf.int64)
        return p // n, _index_shuffle(tf, p % n, seed, p // n, n)

    def images(record):
        if groups is None:
            return {"image": _whole(tf, record["image"], size)}
        return _views(tf, record["image"], groups, (seed, record["epoch"], record["id"]))

    if groups is None:
        blank = {"image": (*size, 3)}
    else:
        blank = {name: (g["count"], g["size"], g["size"], 3) for name, g in groups.items()}
    read = _reader(tf, source, label, text_key, tokenizer)
    # Pixels in memory that the host has nothing to do to stay whole batches, at the speed of a copy.
    ready = groups is None and source.fields["image"].shape == (*size, 3) and not source.fields["image"].encoded
    stop = np.iinfo(np.int64).max if steps is None else start_step + steps

    def build(step, guard):
        dataset = tf.data.Dataset.range(step, stop).map(positions)
        if ready:
            return _finish(tf, dataset.map(read), threads)
        return _finish(tf, _one_by_one(tf, dataset, read, images, blank, guard, len(rows), threads), threads)

    return Batches(build, start_step)


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

    read = _reader(tf, source, label, text_key, tokenizer, extra)
    blank = {"image": (image_size, image_size, 3)}

    def build(step, guard):
        dataset = tf.data.Dataset.range(step, math.ceil(n / batch)).map(positions)
        return _finish(tf, _one_by_one(tf, dataset, read, images, blank, guard, len(rows), threads), threads)

    return Batches(build, 0, drop=("epoch",))


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

    values: {"image": uint8 (N, H, W, 3), any further arrays of N rows}; each comes cut into rows under its own name, with "id" and
    "valid"; the last batch is filled up with zeros, id -1 and valid=False.
    """
    rows = _rows(batch, process_index, process_count)
    n = len(values["image"])
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
    """An iterator of numpy dicts that counts the broken images it has passed (`broken`) and names the first hundred (`broken_ids`).

    build(step, guard) -> tf.data.Dataset of the batches from `step` on. A failing op ends a dataset, and guarding each image against it
    costs half a millisecond an image. So the first failure, not the start, buys that: the dataset is built again at the step that
    failed, guarded. The order being stateless, nobody sees the seam.
    """

    def __init__(self, build, step, drop=()):
        self.broken, self.broken_ids = 0, []
        self._build, self._step, self._drop, self._guarded = build, step, drop, False
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
        batch = {key: value for key, value in batch.items() if key not in self._drop}
        bad = batch["id"][~batch["valid"] & (batch["id"] >= 0)]
        self.broken += len(bad)
        self.broken_ids += bad[: 100 - len(self.broken_ids)].tolist()
        return batch


def prefetch(iterator, put, depth=2):
    """`put(batch)` of every batch of `iterator`, made by a background thread up to `depth` ahead.

    Args:
      put: moves a batch to the devices (or returns it as it is). depth: batches that may wait, at least 1.
    Returns:
      Prefetch: an iterator. Its `stall_seconds` grows by the time the consumer waited, the first batch included. An exception in
      `iterator` or `put` is raised where its batch would have come. `close()`, leaving a `with` block, dropping the last reference and
      the interpreter's exit all stop the thread.
    """
    return Prefetch(iterator, put, depth)


class Prefetch:
    """See `prefetch`."""

    def __init__(self, iterator, put, depth=2):
        if depth < 1:
            raise UserError(f"data.prefetch={depth} must be at least 1")
        self.stall_seconds = 0.0
        self._ready, self._done = queue.SimpleQueue(), False
        self._room, stop = threading.Semaphore(depth), threading.Event()
        # The thread holds no reference to self, so that dropping self can stop it.
        thread = threading.Thread(target=_fill, args=(iterator, put, self._ready, self._room, stop), name="prefetch", daemon=True)
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

    def close(self):
        """Stops the thread, after the batch it is at; what was ready is dropped."""
        self._done = True
        self._finalizer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _fill(iterator, put, ready, room, stop):
    iterator = iter(iterator)
    while True:
        room.acquire()
        if stop.is_set():
            return
        try:
            ready.put((put(next(iterator)), None))
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
    out = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5}
    out.update({key: group[key] for key in ("count", "size", "scale", "ratio", "flip") if key in group})
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


def _index_shuffle(tf, offset, seed, epoch, n):
    """tf.random.experimental.index_shuffle(offset, [seed, epoch], n - 1), elementwise: its wrapper pads seeds of several rows wrongly."""
    seeds = tf.stack([tf.fill(tf.shape(epoch), tf.constant(x, tf.int64)) for x in (_SALT, seed)] + [epoch], axis=-1)  # (b, 3)
    return tf.raw_ops.RandomIndexShuffle(index=offset, seed=seeds, max_index=tf.constant(n - 1, tf.int64), rounds=_ROUNDS)


def _reader(tf, source, label, text_key, tokenizer, extra=()):
    """A map from (epochs, ids) to records, by the chunk: "image", "id", "epoch", "valid", ["label"], ["text"], *extra. Id -1 is filling."""
    labels = {**({"label": label} if label else {}), **{name: name for name in extra}}
    field = source.fields["image"]
    black = np.zeros(field.shape or (1, 1, 3), np.uint8)
    black = encode_image(black, "png") if field.encoded else black

    def read(ids):
        known = [i for i in ids if i >= 0]
        found = iter(source.__getitems__(known) if known else [])
        records = [next(found) if i >= 0 else None for i in ids]
        images = [black if r is None else r["image"] for r in records]
        out = [np.array(images, dtype=object) if field.encoded else np.stack(images)]
        out += [np.array([-1 if r is None else r[name] for r in records], np.int32) for name in labels.values()]
        if tokenizer is not None:
            out.append(tokenizer(["" if r is None else r[text_key] for r in records]))
        return out

    # (key, type, shape of one) of what `read` returns
    kinds = [("image", tf.string, ()) if field.encoded else ("image", tf.uint8, field.shape)]
    kinds += [(name, tf.int32, ()) for name in labels]
    kinds += [("text", tf.int32, (tokenizer.length,))] if tokenizer is not None else []

    def chunk(epochs, ids):
        values = tf.numpy_function(read, [ids], [kind for _, kind, _ in kinds], stateful=False)
        out = {key: tf.ensure_shape(v, (ids.shape[0], *shape)) for v, (key, _, shape) in zip(values, kinds, strict=True)}
        return {**out, "id": tf.cast(ids, tf.int32), "epoch": tf.cast(epochs, tf.int32), "valid": ids >= 0}

    return tf.autograph.experimental.do_not_convert(chunk)


def _one_by_one(tf, dataset, read, images, blank, guard, rows, threads):
    """(epochs, ids) of each step -> batches of `rows` records with images(record) in place of the image.

    With `guard`, zeros and valid=False where `images` fails: a failing op inside one element of an inner dataset only empties that one,
    and the zeros come next.
    """

    def attempt(record):
        good = tf.data.Dataset.from_tensors(record).map(lambda r: {**images(r), "valid": r["valid"]})
        zeros = {name: tf.zeros(shape, tf.uint8) for name, shape in blank.items()}
        bad = tf.data.Dataset.from_tensors({**zeros, "valid": tf.constant(False)})
        return good.ignore_errors(log_warning=False).concatenate(bad).take(1).get_single_element()

    def replace(record):
        return {**{k: v for k, v in record.items() if k != "image"}, **(attempt if guard else images)(record)}

    parallel = threads or tf.data.AUTOTUNE
    dataset = dataset.unbatch().batch(min(CHUNK, rows)).map(read, num_parallel_calls=parallel).unbatch()
    dataset = dataset.map(tf.autograph.experimental.do_not_convert(replace), num_parallel_calls=parallel)
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
    shape = tf.shape(image)[:2]

    def shrink():
        scale = tf.cast(size, tf.float32) / tf.cast(shape, tf.float32)
        return tf.raw_ops.ScaleAndTranslate(
            images=image[None], size=size, scale=scale, translation=[0.0, 0.0], kernel_type="triangle", antialias=True
        )

    def enlarge():  # the same numbers, at a third of the time
        return tf.raw_ops.ResizeBilinear(images=image[None], size=size, half_pixel_centers=True)

    return tf.cond(tf.reduce_any(shape > size), shrink, enlarge)[0]


def _uint8(tf, image):
    return tf.cast(tf.round(image), tf.uint8)  # an average of bytes: no clipping needed


def _views(tf, image, groups, key):
    """{group: uint8 (count, size, size, 3)} of one image, encoded or not, decoded once; of a JPEG only the box around all its crops."""
    seed, epoch, example = key

    def fold(seed, data):
        return tf.random.experimental.stateless_fold_in(seed, tf.cast(data, tf.int64))  # data's dtype is the new seed's

    base = fold(tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)]), example)

    def boxes(shape):
        return {name: _boxes(tf, fold(base, zlib.crc32(name.encode()) >> 1), shape, g) for name, g in groups.items()}

    def cut(pixels, origin, boxes):
        """The views, from pixels whose upper left corner lies at `origin` of the image."""
        out = {}
        for name, group in groups.items():
            corners, sizes, flips = boxes[name]
            zero, three = tf.zeros_like(corners[:, :1]), tf.fill(tf.shape(corners[:, :1]), 3)
            starts, extents = tf.concat([corners - origin, zero], 1), tf.concat([sizes, three], 1)
            crops = [tf.slice(pixels, *at) for at in zip(tf.unstack(starts), tf.unstack(extents), strict=True)]
            views = _uint8(tf, tf.stack([_resize(tf, crop, [group["size"]] * 2) for crop in crops]))
            views = tf.where(flips[:, None, None, None], tf.reverse(views, [2]), views)
            out[name] = tf.ensure_shape(views, (group["count"], group["size"], group["size"], 3))
        return out

    def whole():
        pixels = _decode(tf, image) if image.dtype == tf.string else image
        return cut(pixels, [0, 0], boxes(tf.shape(pixels)[:2]))

    def part():
        drawn = boxes(_shape(tf, image))
        corners = tf.concat([corners for corners, _, _ in drawn.values()], 0)  # (all views, 2)
        ends = tf.concat([corners + sizes for corners, sizes, _ in drawn.values()], 0)
        low, high = tf.reduce_min(corners, 0), tf.reduce_max(ends, 0)
        pixels = tf.image.decode_and_crop_jpeg(image, tf.concat([low, high - low], 0), channels=3)
        return cut(pixels, low, drawn)

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
