"""The embedded data: real digits and real photographs that PyPI packages already ship, composed into small scenes.

`plain`: scikit-learn's 1,797 handwritten digits in white on black, of any size, place and turn, so that raw pixels say little
while features that ignore place and size say much. `photo`: coloured digits over crops of fourteen photographs from scikit-image and
scikit-learn, with a caption and a description. Train and test share no digit image, and no part of a photograph (left 70 % against
right 30 %).

Arrays are a function of (config, split, n, seed) alone. No TensorFlow, no download; a few seconds on one core.

    python -m ssljax.data.scenes_recipe --sheet sheet.png       # raw-pixel scores, and a contact sheet to look at
"""

import functools
import pathlib

import numpy as np

from ssljax.errors import UserError

VERSION = "1.1.0"  # of the recipe: raise it whenever an array changes, so that no prepared copy outlives its recipe
CANVAS = 32  # pixels, height and width of every image
COUNTS = {"train": 8192, "test": 2048}
TRAIN_DIGITS = 0.8  # share of the digit images
TRAIN_WIDTH = 0.7  # share of a photograph's width

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
# Word in the caption -> file in the wheel.
PHOTOGRAPHS = {
    "astronaut": "skimage/data/astronaut.png",
    "brick": "skimage/data/brick.png",
    "cat": "skimage/data/chelsea.png",
    "coffee": "skimage/data/coffee.png",
    "coins": "skimage/data/coins.png",
    "flower": "sklearn/datasets/images/flower.jpg",
    "galaxies": "skimage/data/hubble_deep_field.jpg",
    "grass": "skimage/data/grass.png",
    "gravel": "skimage/data/gravel.png",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "pagoda": "sklearn/datasets/images/china.jpg",
    "retina": "skimage/data/retina.jpg",
    "rocket": "skimage/data/rocket.jpg",
    "tissue": "skimage/data/ihc.png",
}
COLOURS = {
    "red": (225, 25, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 235, 40),
    "green": (30, 190, 50),
    "blue": (30, 60, 235),
    "purple": (170, 40, 200),
    "white": (250, 250, 250),
    "cyan": (40, 220, 230),
}
SIZES = {"small": (12.0, 15.0), "medium": (16.0, 20.0), "large": (21.0, 26.0)}  # side of the digit's 8x8 box, pixels
LIGHT = (1.6, 1.35)
PLACES = ["top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right"]
# What people say of a photograph without its name: words that come together, some of them said of several photographs.
SAID = {
    "astronaut": "suit helmet flag smile woman badge space shuttle collar portrait",
    "brick": "wall mortar blocks rows masonry house clay edges stone corner",
    "cat": "fur whiskers ears nose kitten stripes pet face paws eye",
    "coffee": "cup saucer spoon table drink foam handle morning wood breakfast",
    "coins": "money metal bronze emperors antique museum silver faces stamp hoard",
    "flower": "petals stem garden bloom dahlia leaves pollen summer plant bees",
    "galaxies": "stars space telescope spirals deep sky dust night light distance",
    "grass": "lawn blades meadow field turf leaves garden plant summer ground",
    "gravel": "stones pebbles path ground rocks drive grit stone rubble dust",
    "motorcycle": "wheels engine garage seat tyre metal chrome workshop tank handle",
    "pagoda": "roof temple tiles palace trees tower storeys house sky stone",
    "retina": "eye vessels nerve doctor disc medicine fundus scan light lens",
    "rocket": "launch pad tower smoke flame space fire night sky lights",
    "tissue": "cells microscope stain slide nuclei medicine gland scan lens doctor",
}
FILLERS = "old new bright dark quiet plain fine soft hard clean odd big part piece view side detail thing bit kind".split()
DESCRIPTIONS = (  # {}: a word of SAID, []: a filler
    "[] {} and a [] {} with {} []", "the {} and the {} of a [] [] {}", "{} [] {} [] {} []", "a [] [] where {} and {} meet {}",
)  # fmt: skip

CLASSES = {
    "plain": {"digit": DIGITS},
    "photo": {
        "photograph": list(PHOTOGRAPHS),
        "colour": list(COLOURS),
        "digit": DIGITS,
        "place": PLACES,
        "size": list(SIZES),
    },
}
# Zero-shot prompts per label: the mean of the embeddings over a label's templates stands for the class (Radford et al. 2021, 3.1.4).
PROMPTS = {
    "plain": {},  # no captions
    "photo": {
        "photograph": ["a digit on {}", "a small digit on {}", "a large digit on {}", "a red digit on {}", "a white digit on {}"],
        "colour": ["a {} digit", "a small {} digit", "a medium {} digit", "a large {} digit"],
        "digit": ["a {}", "a small {}", "a medium {}", "a large {}"],
        "place": ["a digit at the {}", "a small digit at the {}", "a large digit at the {}"],
        "size": ["a {} digit", "a {} red digit", "a {} white digit"],
    },
}


def make(config, split, n=None, seed=0):
    """One split as arrays.

    Args:
      config: "plain" or "photo". split: "train" or "test". n: examples, default 8,192 and 2,048. seed: another draw of the same recipe.
    Returns:
      dict of arrays of n rows. Both: image uint8 (n, 32, 32, 3); digit int32 (the class); source_digit int32 (which of the 1,797);
      row, col float32 (centre of the digit, pixels); angle float32 (degrees, counter-clockwise).
      plain: label int32 (= digit); size float32 (side of the digit's box, pixels).
      photo: photograph, colour, place, size int32 (classes of `CLASSES["photo"]`); pixels float32 (side of the digit's box);
      crop float32 (n, 4), (top, left, height, width) in the photograph's pixels; caption, description, lists of str.
    Raises:
      UserError: unknown config or split, or a wheel without the photographs.
    """
    if config not in CLASSES:
        raise UserError(f"scenes config {config!r} is unknown; it is one of {', '.join(CLASSES)}")
    if split not in COUNTS:
        raise UserError(f"scenes split {split!r} is unknown; it is one of {', '.join(COUNTS)}")
    n = COUNTS[split] if n is None else n
    rng = np.random.default_rng([seed, list(CLASSES).index(config), list(COUNTS).index(split)])
    return (_plain if config == "plain" else _photo)(rng, split, n, seed)


def digit_split(split, seed=0):
    """Indices (int64, sorted) of the digit images of a split: a random 80 % for train, the others for test."""
    total = len(_digits()[1])
    order = np.random.default_rng([seed, total]).permutation(total)
    cut = round(TRAIN_DIGITS * total)
    return np.sort(order[:cut] if split == "train" else order[cut:])


def photograph(name):
    """One photograph as uint8 (H, W, 3)."""
    from PIL import Image

    package, inside = PHOTOGRAPHS[name].split("/", 1)
    path = pathlib.Path(__import__(package).__file__).parent / inside
    if not path.exists():
        raise UserError(f"photograph {name!r}: {inside} is not in the installed {package}; install the version in requirements.txt")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def side(width, split):
    """Columns [lo, hi) of a photograph of this width that belong to a split."""
    cut = int(TRAIN_WIDTH * width)
    return (0, cut) if split == "train" else (cut, width)


def _plain(rng, split, n, seed):
    source, digit = _draw_digits(rng, split, n, seed)
    size = rng.uniform(12.0, 26.0, n)
    angle = rng.uniform(-25.0, 25.0, n)
    row, col = _place(source, size, angle, rng.uniform(-1.0, 1.0, (n, 2)))
    # Thin strokes: blurred ones overlap under any shift, and raw-pixel neighbours would do nearly as well as learned ones.
    ink = np.clip(2.5 * _render(source, size, angle, row, col) - 1.0, 0.0, 1.0)  # (n, 32, 32)
    image = np.repeat(np.round(255 * ink).astype(np.uint8)[..., None], 3, axis=-1)
    return {
        "image": image, "label": digit, "digit": digit, "size": np.float32(size), "row": row, "col": col,
        "angle": np.float32(angle), "source_digit": source,
    }  # fmt: skip


def _photo(rng, split, n, seed):
    source, digit = _draw_digits(rng, split, n, seed)
    classes = {name: rng.integers(0, len(CLASSES["photo"][name]), n) for name in ("photograph", "colour", "place", "size")}

    low, high = np.array(list(SIZES.values())).T[:, classes["size"]]
    pixels = rng.uniform(low, high)
    angle = rng.uniform(-15.0, 15.0, n)
    # A place is a third of the room the digit has, down and across: whatever its size, "left" touches the left third of where it could be.
    third = np.stack([classes["place"] // 3, classes["place"] % 3], axis=-1)  # (n, 2) in {0, 1, 2}
    row, col = _place(source, pixels, angle, (2.0 * (third + rng.uniform(0.1, 0.9, (n, 2))) / 3.0) - 1.0)
    ink = np.clip(1.5 * _render(source, pixels, angle, row, col), 0.0, 1.0)  # thicker strokes: colour stays readable

    image, crop = _backgrounds(rng, classes["photograph"], split)
    image = _relight(rng, image)
    image = _painted(rng, image, ink, classes["colour"])
    return {
        "image": np.round(image).astype(np.uint8), **{name: np.int32(c) for name, c in classes.items()}, "digit": digit,
        "pixels": np.float32(pixels), "row": row, "col": col, "angle": np.float32(angle), "source_digit": source,
        "crop": crop, "caption": _captions(rng, classes, digit),
        "description": _descriptions(np.random.default_rng([seed, list(COUNTS).index(split), len(DESCRIPTIONS)]), classes["photograph"]),
    }  # fmt: skip


def _captions(rng, classes, digit):
    """Mostly "a small red seven on gravel"; a quarter say where, and now and then one part is left out, as people's captions do."""
    word = {name: [CLASSES["photo"][name][i] for i in c] for name, c in {**classes, "digit": digit}.items()}
    n = len(digit)
    says_size, says_digit, says_photograph = (rng.uniform(size=(3, n)) < 0.9).tolist()
    says_place = (rng.uniform(size=n) < 0.25).tolist()
    return [
        " ".join(
            ["a"]
            + [word["size"][i]] * says_size[i]
            + [word["colour"][i], word["digit"][i] if says_digit[i] else "digit"]
            + ["at the " + word["place"][i]] * says_place[i]
            + ["on " + word["photograph"][i]] * says_photograph[i]
        )
        for i in range(n)
    ]


def _descriptions(rng, photographs):
    """ "fine pebbles and a quiet path with grit view": what is in the photograph, never its name, among words that are said of anything.
    Words of a photograph come together, so that a hidden one can be guessed; those of a caption are drawn independently of each other."""
    out = []
    for name in photographs:
        words = SAID[list(PHOTOGRAPHS)[name]].split()
        said, fillers = iter(rng.choice(words, 3, replace=False)), iter(rng.choice(FILLERS, 3, replace=False))
        form = DESCRIPTIONS[rng.integers(len(DESCRIPTIONS))].split()
        out.append(" ".join(next(said) if word == "{}" else next(fillers) if word == "[]" else word for word in form))
    return out


@functools.cache
def _digits():
    """(1797, 8, 8) ink in [0, 1] and (1797,) classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images / 16.0, bunch.target.astype(np.int32)


def _draw_digits(rng, split, n, seed):
    """Every digit image of the split equally often (up to one), in random order: (source, class), int32 (n,)."""
    ours = digit_split(split, seed)
    source = rng.permutation(np.resize(rng.permutation(ours), n)).astype(np.int32)
    return source, _digits()[1][source]


def _turn(angle):
    """Degrees -> cos, sin, with room for one more axis."""
    radians = np.deg2rad(angle)[:, None]
    return np.cos(radians), np.sin(radians)


def _place(source, size, angle, where):
    """Centres such that the turned ink lies wholly on the canvas; where (n, 2) in [-1, 1] picks from the room there is, down and across.

    A digit too large for any room (a wide one of 26 pixels, turned) is centred. Returns row, col: float32 (n,), pixels.
    """
    ink = _digits()[0][source].reshape(len(source), 64) > 0
    down, across = np.divmod(np.arange(64), 8)
    down, across = ((x - 3.5) * size[:, None] / 8.0 for x in (down, across))  # (n, 64) offsets of cell centres from the digit's centre
    cos, sin = _turn(angle)
    centres = []
    for axis, offset in enumerate((cos * down - sin * across, sin * down + cos * across)):
        half = (np.abs(cos) + np.abs(sin))[:, 0] * size / 16.0  # a turned cell's half extent
        low = half - np.min(np.where(ink, offset, np.inf), axis=1)
        high = CANVAS - half - np.max(np.where(ink, offset, -np.inf), axis=1)
        room = np.maximum(high - low, 0.0)
        centres.append(((low + high + room * where[:, axis]) / 2.0).astype(np.float32))
    return centres


def _render(source, size, angle, row, col):
    """Bilinear samples of the turned and enlarged 8x8 digits: (n, 32, 32), ink in [0, 1]. size >= 8, so nothing aliases."""
    grid = np.arange(CANVAS) + 0.5
    out = np.empty((len(source), CANVAS, CANVAS))
    padded = np.pad(_digits()[0], ((0, 0), (1, 2), (1, 2)))  # a ring of no ink, and one more for the upper neighbour
    for start in range(0, len(source), 1024):  # bounds the memory of the index arrays
        rows = slice(start, start + 1024)
        cos, sin = (x[:, :, None] for x in _turn(angle[rows]))
        down = grid[None, :, None] - row[rows, None, None]
        across = grid[None, None, :] - col[rows, None, None]
        zoom = 8.0 / size[rows, None, None]
        # The inverse turn, then canvas pixels -> digit cells, whose centres lie at +0.5; +1 for the ring.
        v = np.clip((cos * down + sin * across) * zoom + 4.5, 0.0, 9.0)
        u = np.clip((-sin * down + cos * across) * zoom + 4.5, 0.0, 9.0)
        v0, u0 = v.astype(np.intp), u.astype(np.intp)
        fv, fu = v - v0, u - u0
        which = source[rows, None, None]
        out[rows] = (
            (1 - fv) * ((1 - fu) * padded[which, v0, u0] + fu * padded[which, v0, u0 + 1])
            + fv * ((1 - fu) * padded[which, v0 + 1, u0] + fu * padded[which, v0 + 1, u0 + 1])
        )  # fmt: skip
    return out


def _backgrounds(rng, which, split):
    """Square crops of the split's side of each photograph, shrunk to the canvas: float (n, 32, 32, 3) and boxes float32 (n, 4)."""
    from PIL import Image

    n = len(which)
    scale, top, left = rng.uniform(size=(3, n))
    images, boxes = np.empty((n, CANVAS, CANVAS, 3)), np.empty((n, 4), np.float32)
    for k, name in enumerate(PHOTOGRAPHS):
        array = photograph(name)
        height, width = array.shape[:2]
        low, high = side(width, split)
        image = Image.fromarray(array[:, low:high])  # cut first: the filter reads a little beyond its box, never beyond the image
        # One law of scale for both splits, set by the narrower (test) side.
        largest = min(height, width - side(width, "train")[1])
        for i in np.flatnonzero(which == k):
            edge = largest * (0.4 + 0.6 * scale[i])
            y, x = top[i] * (height - edge), left[i] * (high - low - edge)
            images[i] = image.resize((CANVAS, CANVAS), Image.Resampling.BILINEAR, box=(x, y, x + edge, y + edge))
            boxes[i] = (y, low + x, edge, edge)
    return images, boxes


def _relight(rng, images):
    """Each photograph under a light of its own: exposure within a factor LIGHT[0] either way, each colour channel within LIGHT[1].

    Mean colour alone would tell most of the fourteen apart, to raw pixels and to a random encoder as well; texture and shape do not change.
    """
    n = len(images)
    exposure, tint = (np.exp(rng.uniform(-1.0, 1.0, shape) * np.log(most)) for shape, most in zip(((n, 1), (n, 3)), LIGHT, strict=True))
    return np.clip(images * (exposure * tint)[:, None, None, :], 0.0, 255.0)


# ------------------------------------------------------------------------------------------------------ scenes that know their own truth
SURFACES = ["digit", *PHOTOGRAPHS]  # classes of `masks`
FAR, FRAMES = 4.0, 8  # depth of the photograph behind `layers`; frames of a video of `moving`


def masks(split, n, seed=0):
    """Scenes of `photo` and what every pixel is: image uint8 (n, 32, 32, 3), mask int32 (n, 32, 32), classes of SURFACES."""
    scene = make("photo", split, n, seed)
    ink = np.clip(1.5 * _render(*(scene[key] for key in ("source_digit", "pixels", "angle", "row", "col"))), 0.0, 1.0)
    return {"image": scene["image"], "mask": np.where(ink >= 0.5, 0, 1 + scene["photograph"][:, None, None]).astype(np.int32)}


def layers(split, n, seed=0):
    """Three digits at depths of their own in front of a photograph, the nearer the larger, near hides far: image uint8 (n, 32, 32, 3),
    depth float32 (n, 32, 32) in (1, 4]."""
    rng = np.random.default_rng([seed, len(CLASSES), list(COUNTS).index(split)])
    image = _relight(rng, _backgrounds(rng, rng.integers(0, len(PHOTOGRAPHS), n), split)[0])
    depth = np.full(image.shape[:3], FAR, np.float32)
    for distance in -np.sort(-rng.uniform(1.0, 3.0, (3, n)), axis=0):  # the farthest first
        ink = _strokes(rng, split, 24.0 / distance, seed, rng.uniform(-1.0, 1.0, (n, 2)))
        image = _painted(rng, image, ink, rng.integers(0, len(COLOURS), n))
        depth = np.where(ink >= 0.5, distance[:, None, None], depth)
    return {"image": np.round(image).astype(np.uint8), "depth": depth.astype(np.float32)}


def moving(split, n, seed=0):
    """Videos of two digits that cross a photograph in straight lines: video uint8 (n, 8, 32, 32, 3), mask int32 (n, 8, 32, 32): 0 the
    photograph, 1 and 2 the digits, of which the second is in front."""
    rng = np.random.default_rng([seed, len(CLASSES) + 1, list(COUNTS).index(split)])
    still = _relight(rng, _backgrounds(rng, rng.integers(0, len(PHOTOGRAPHS), n), split)[0])
    start, end = rng.uniform(-1.0, 1.0, (2, 2, n, 2))  # (from and to, digit, video, down and across)
    size, colour = rng.uniform(12.0, 18.0, (2, n)), rng.permuted(np.tile(np.arange(len(COLOURS)), (n, 1)), axis=1).T[:2]
    source = [_draw_digits(rng, split, n, seed)[0] for _ in range(2)]
    video, mask = [], []
    for time in np.linspace(0.0, 1.0, FRAMES):
        image, truth = still, np.zeros(still.shape[:3], np.int32)
        for digit in range(2):
            where = (1 - time) * start[digit] + time * end[digit]
            ink = _strokes(rng, split, size[digit], seed, where, source[digit])
            image = _painted(None, image, ink, colour[digit])
            truth = np.where(ink >= 0.5, digit + 1, truth)
        video.append(np.round(image).astype(np.uint8))
        mask.append(truth.astype(np.int32))
    return {"video": np.stack(video, axis=1), "mask": np.stack(mask, axis=1)}


def _strokes(rng, split, size, seed, where, source=None):
    """Ink (n, 32, 32) in [0, 1] of upright digits of these sizes, `where` (n, 2) of the room there is."""
    source = _draw_digits(rng, split, len(size), seed)[0] if source is None else source
    angle = np.zeros(len(size))
    return np.clip(1.5 * _render(source, size, angle, *_place(source, size, angle, where)), 0.0, 1.0)


def _painted(rng, image, ink, colour):
    """Images (n, 32, 32, 3) with ink of a colour (n,) over them; rng: for a shade of its own."""
    shade = 0.0 if rng is None else rng.uniform(-12, 12, (len(image), 3))
    paint = np.clip(np.array(list(COLOURS.values()))[colour] + shade, 0, 255)[:, None, None, :]
    return np.where(ink[..., None] > 0, (1.0 - ink[..., None]) * image + ink[..., None] * paint, image)


def raw_scores(config, train=None, test=None):
    """Test accuracy of raw pixels for each label: {label: {"knn": 20 nearest, cosine, "logistic": linear, "chance": 1/classes}}."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler

    train = make(config, "train") if train is None else train
    test = make(config, "test") if test is None else test
    x, y = (s["image"].reshape(len(s["image"]), -1).astype(np.float32) / 255.0 for s in (train, test))
    if config == "plain":  # three equal channels say nothing more than one
        x, y = x[:, ::3], y[:, ::3]
    nearest = NearestNeighbors(n_neighbors=20, metric="cosine").fit(x).kneighbors(y, return_distance=False)
    scaler = StandardScaler().fit(x)
    scores = {}
    for label, names in CLASSES[config].items():
        votes = np.stack([(train[label][nearest] == c).sum(axis=1) for c in range(len(names))])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # stopping early only regularises
            linear = LogisticRegression(C=1e-3, max_iter=50).fit(scaler.transform(x), train[label])
        scores[label] = {
            "knn": float(np.mean(votes.argmax(axis=0) == test[label])),
            "logistic": linear.score(scaler.transform(y), test[label]),
            "chance": 1.0 / len(names),
        }
    return scores


def contact_sheet(path, rows=6, columns=12, zoom=3):
    """Writes a PNG: `rows` rows of plain, then of photo, test split, each enlarged without smoothing."""
    from PIL import Image

    images = np.concatenate([make(config, "test", n=rows * columns)["image"] for config in CLASSES])
    tiles = images.reshape(-1, columns, CANVAS, CANVAS, 3).transpose(0, 2, 1, 3, 4).reshape(-1, columns * CANVAS, 3)
    Image.fromarray(tiles.repeat(zoom, axis=0).repeat(zoom, axis=1)).save(path)


def _main():
    import argparse
    import time

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheet", help="write a contact sheet (PNG) here and print its captions")
    parser.add_argument("--no-scores", action="store_true", help="do not fit the raw-pixel classifiers")
    args = parser.parse_args()
    for config in CLASSES:
        start = time.time()
        train, test = make(config, "train"), make(config, "test")
        print(f"scenes/{config}: {len(train['image'])} train, {len(test['image'])} test, made in {time.time() - start:.1f} s")
        if not args.no_scores:
            for label, s in raw_scores(config, train, test).items():
                print(f"  raw pixels, {label:10s} kNN {s['knn']:.3f}  logistic {s['logistic']:.3f}  chance {s['chance']:.3f}")
    if args.sheet:
        contact_sheet(args.sheet)
        print("\n".join(make("photo", "test", n=24)["caption"]))


if __name__ == "__main__":
    _main()
