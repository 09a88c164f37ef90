"""The host's input on one core: images/s against the pure decode limit, and against others doing the same views, in one interleaved run.

    python launch/bench/data.py --quick        # half a minute of measuring
    python launch/bench/data.py --json         # all rounds; ends with one JSON line

The pictures are scikit-image's photographs at 500 x 375, as JPEGs of quality 95 and about the size of ImageNet's. Every round gives every
case the same pictures, one case after the other; a case's time is the CPU time of this process, whose pools have one thread each and
work one at a time: what one core would take, on a busy machine too. A ratio is the median over rounds of the times of one round.

    decode limit      tf.io.decode_jpeg of the whole image, nothing else: the pixels are dropped
    ours              ssljax.data.pipeline's views: one decode, crops by RandomResizedCrop's law, resize, flip, uint8
    Pillow, cv2       the same views, decode included, with Pillow and with cv2 + albumentations where these are installed
    BYOL in TF        two 224 crops and BYOL's colour jitter, greyscale, blur and solarize in TensorFlow ops on the host; ours leaves
                      these to the device
    ArrayRecord       random reads of 64 records from shards that `ssljax.data.prepare` wrote
"""

import datetime
import functools
import importlib.util
import io
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # the entry points turn it off; without it BYOL's blur in TF takes five times as long

from launch.bench.rows import commit, keep  # noqa: E402
from ssljax import cli  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_bool("quick", False, "five rounds", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 25, "rounds; each runs every case on 64 images", flag_values=FLAGS)
flags.DEFINE_string("out", str(ROOT / "launch/bench/results/data.jsonl"), "rows are appended here", flag_values=FLAGS)
flags.DEFINE_bool("json", False, "end with one JSON line of the whole table", flag_values=FLAGS)

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry")
WIDTH, HEIGHT, QUALITY, IMAGES = 500, 375, 95, 64
ONE = {"views": {"count": 1, "size": 224}}
TWO = {"views": {"count": 2, "size": 224}}
MANY = {"views": {"count": 2, "size": 224, "scale": (0.25, 1.0)}, "crops": {"count": 8, "size": 96, "scale": (0.05, 0.25)}}


def jpegs():
    """IMAGES JPEGs: parts of the photographs, of all sizes that fit, at 500 x 375."""
    import numpy as np
    from PIL import Image
    from skimage import data

    rng, out = np.random.default_rng(0), []
    pictures = [Image.fromarray(getattr(data, name)()[..., :3]) for name in PHOTOGRAPHS]
    for i in range(IMAGES):
        picture = pictures[i % len(pictures)]
        most = min(picture.width / WIDTH, picture.height / HEIGHT)
        scale = most * rng.uniform(0.7, 1.0)
        left, top = rng.uniform(0, picture.width - scale * WIDTH), rng.uniform(0, picture.height - scale * HEIGHT)
        box = (left, top, left + scale * WIDTH, top + scale * HEIGHT)
        buffer = io.BytesIO()
        picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS, box=box).save(buffer, "jpeg", quality=QUALITY)
        out.append(buffer.getvalue())
    return out


# --------------------------------------------------------------------------------------------------------------- cases


def tensorflow_case(tf, encoded, image_map):
    """image_map(i, bytes) over the pictures in tf.data, one thread, nothing made ahead. -> function of no arguments."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False  # they add buffers that work ahead
    dataset = tf.data.Dataset.from_tensor_slices(encoded).repeat().enumerate()
    dataset = dataset.map(tf.autograph.experimental.do_not_convert(image_map)).batch(IMAGES).with_options(options)
    iterator = iter(dataset)
    return lambda: next(iterator)


def ours(tf, groups, i, image):
    from ssljax.data import pipeline

    groups = {name: pipeline._group(name, group) for name, group in groups.items()}
    return pipeline._views(tf, image, groups, (0, tf.zeros((), tf.int64), i))


def byol(tf, i, image):
    """Two views by BYOL's recipe (Grill et al. 2020, appendix B) in TensorFlow ops, as its authors' code has them."""
    views = tf.unstack(ours(tf, TWO, i, image)["views"])
    return tf.stack([byol_photometric(tf, tf.cast(v, tf.float32) / 255, tf.stack([i, k]), k) for k, v in enumerate(views)])


def byol_photometric(tf, image, seed, view):
    draws = iter(tf.unstack(tf.random.stateless_uniform([16], seed)))

    def maybe(probability, function, image):
        return tf.cond(next(draws) < probability, lambda: function(image), lambda: image)

    def jitter(image):
        image = image + 0.4 * (2 * next(draws) - 1)
        image = tf.image.adjust_contrast(image, 1 + 0.4 * (2 * next(draws) - 1))
        image = tf.image.adjust_saturation(image, 1 + 0.2 * (2 * next(draws) - 1))
        return tf.clip_by_value(tf.image.adjust_hue(image, 0.1 * (2 * next(draws) - 1)), 0, 1)

    def blur(image):
        sigma = 0.1 + 1.9 * next(draws)
        x = tf.range(-11, 12, dtype=tf.float32)  # 23 taps: a tenth of 224
        kernel = tf.exp(-(x**2) / (2 * sigma**2))
        kernel = tf.tile((kernel / tf.reduce_sum(kernel))[:, None, None, None], [1, 1, 3, 1])
        image = tf.nn.depthwise_conv2d(image[None], kernel, [1, 1, 1, 1], "SAME")
        return tf.nn.depthwise_conv2d(image, tf.transpose(kernel, [1, 0, 2, 3]), [1, 1, 1, 1], "SAME")[0]

    image = maybe(0.8, jitter, image)
    image = maybe(0.2, lambda x: tf.tile(tf.image.rgb_to_grayscale(x), [1, 1, 3]), image)
    image = maybe((1.0, 0.1)[view], blur, image)
    if view == 1:
        image = maybe(0.2, lambda x: tf.where(x < 0.5, x, 1 - x), image)
    return tf.cast(tf.clip_by_value(image, 0, 1) * 255 + 0.5, tf.uint8)


def boxes(groups, rng):
    """(left, top, width, height, size, flip) of every view of one picture, by the same law, drawn with numpy."""
    import numpy as np

    for group in groups.values():
        low, high = group.get("scale", (0.08, 1.0))
        for _ in range(group["count"]):
            for _ in range(10):
                area, ratio = rng.uniform(low, high) * WIDTH * HEIGHT, np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
                w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
                if w <= WIDTH and h <= HEIGHT:
                    break
            w, h = min(w, WIDTH), min(h, HEIGHT)
            yield rng.integers(WIDTH - w + 1), rng.integers(HEIGHT - h + 1), w, h, group["size"], rng.random() < 0.5


def pillow_case(encoded, groups):
    """torchvision's way: decode, then crop, resize (bilinear, antialiased) and flip of each view."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)

    def run():
        for data in encoded:
            picture = Image.open(io.BytesIO(data)).convert("RGB")
            for left, top, w, h, size, flip in boxes(groups, rng):
                view = picture.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
                np.asarray(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view)

    return run


def cv2_case(encoded, groups):
    """cv2's decoder and albumentations' RandomResizedCrop and HorizontalFlip."""
    import albumentations
    import cv2
    import numpy as np

    cv2.setNumThreads(1)
    views = []
    for group in groups.values():
        crop = albumentations.RandomResizedCrop((group["size"],) * 2, scale=group.get("scale", (0.08, 1.0)), ratio=(3 / 4, 4 / 3))
        views += [albumentations.Compose([crop, albumentations.HorizontalFlip(p=0.5)])] * group["count"]

    def run():
        for data in encoded:
            picture = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            for view in views:
                view(image=picture)

    return run


def array_record_case(encoded, directory):
    """Random reads of 64 records, as the pipeline reads them, from shards of 4,096 records."""
    import numpy as np

    from ssljax.data import prepare, sources

    for i in range(4096):
        (directory / "images" / str(i % 8)).mkdir(parents=True, exist_ok=True)
        (directory / "images" / str(i % 8) / f"{i:05d}.jpg").write_bytes(encoded[i % len(encoded)])
    prepare.prepare(f"folder:{directory / 'images'}", directory / "records", shards=4)
    source, rng = sources.open(f"arrayrecord:{directory / 'records'}", "all"), np.random.default_rng(0)
    return lambda: source.__getitems__(rng.integers(len(source), size=64))


# ------------------------------------------------------------------------------------------------------------- measuring


def measure(cases, rounds):
    """{case: [CPU seconds of IMAGES pictures, a round]}."""
    seconds = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            start = time.process_time()
            case()
            if turn:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    return seconds


def ratio(seconds, fast, slow):
    """How many times as fast `fast` is as `slow`: median over rounds."""
    return statistics.median(b / a for a, b in zip(seconds[fast], seconds[slow], strict=True))


def bars(seconds):
    """(claim, figure, bar) of the issue."""
    share = functools.partial(ratio, seconds, slow="decode limit")
    return [
        ("one 224 crop / decode limit", share("ours, 1 x 224"), 0.75),
        ("two 224 crops / decode limit", share("ours, 2 x 224"), 0.45),
        ("two 224 crops / BYOL in TF on the host", ratio(seconds, "ours, 2 x 224", "BYOL in TF, 2 x 224"), 2.7),
        ("2 x 224 + 8 x 96 / decode limit", share("ours, 2 x 224 + 8 x 96"), 0.33),
        ("random reads from ArrayRecord a second", 64 / statistics.median(seconds["ArrayRecord, 64 reads"]), 8000),
    ]


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    from ssljax.data import sources

    tf = sources.import_tensorflow()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    encoded = jpegs()
    tensorflow = functools.partial(tensorflow_case, tf, encoded)
    cases = {"decode limit": tensorflow(lambda i, image: tf.io.decode_jpeg(image, channels=3)[0, 0])}  # not even copied out
    rivals = {"Pillow": pillow_case}
    missing = [name for name in ("cv2", "albumentations") if importlib.util.find_spec(name) is None]
    if not missing:
        rivals["cv2 + albumentations"] = cv2_case
    for views, groups in {"1 x 224": ONE, "2 x 224": TWO, "2 x 224 + 8 x 96": MANY}.items():
        cases[f"ours, {views}"] = tensorflow(functools.partial(ours, tf, groups))
        for name, case in rivals.items():
            cases[f"{name}, {views}"] = case(encoded, groups)
    cases["BYOL in TF, 2 x 224"] = tensorflow(functools.partial(byol, tf))

    with tempfile.TemporaryDirectory() as directory:
        cases["ArrayRecord, 64 reads"] = array_record_case(encoded, pathlib.Path(directory))
        seconds = measure(cases, 5 if FLAGS.quick else FLAGS.rounds)

    size = statistics.mean(map(len, encoded)) / 1e3
    rounds = len(seconds["decode limit"])
    print(f"{len(encoded)} JPEGs of {WIDTH} x {HEIGHT}, {size:.0f} kB each; {rounds} rounds; load {os.getloadavg()[0]:.1f}")
    common = {"date": datetime.date.today().isoformat(), "commit": commit(), "machine": platform.machine(), "jpeg_kB": round(size, 1)}
    rows = []
    print("\n| case | a second | / decode limit |\n| --- | --- | --- |")
    for name in cases:
        row = {"case": name, "per_second": round(IMAGES / statistics.median(seconds[name]), 1)}
        if "ArrayRecord" not in name:
            row["of_decode_limit"] = round(ratio(seconds, name, "decode limit"), 3)
        rows.append(row | common)
        print(f"| {name} | {row['per_second']:.0f} | {row.get('of_decode_limit', '')} |")
    if missing:
        print(f"| cv2 + albumentations | {' and '.join(missing)} not installed | |")
    print("\n| claim | figure | bar | |\n| --- | --- | --- | --- |")
    for claim, figure, bar in bars(seconds):
        rows.append({"claim": claim, "figure": round(figure, 3), "bar": bar, "holds": bool(figure >= bar)} | common)
        print(f"| {claim} | {figure:.3g} | {bar:g} | {'holds' if figure >= bar else 'falls short'} |")

    keep(rows, FLAGS.out)
    if FLAGS.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    cli.command(main)
