"""The embedded data: deterministic, disjoint between train and test, drawn where it says, and hard for raw pixels."""

import math

import numpy as np
import pytest

from ssljax.data import scenes_recipe as recipe
from ssljax.errors import UserError


def draw(digit, size, row, col, angle):
    """One 8x8 digit on a 32x32 canvas, pixel by pixel: the inverse turn, then bilinear between cell centres. Ink in [0, 1]."""
    canvas, a = np.zeros((32, 32)), math.radians(angle)

    def cell(r, c):
        return digit[r, c] if 0 <= r < 8 and 0 <= c < 8 else 0.0

    for i in range(32):
        for j in range(32):
            dy, dx = i + 0.5 - row, j + 0.5 - col
            y = (math.cos(a) * dy + math.sin(a) * dx) * 8 / size + 3.5
            x = (-math.sin(a) * dy + math.cos(a) * dx) * 8 / size + 3.5
            r, c = math.floor(y), math.floor(x)
            for rr, wr in ((r, r + 1 - y), (r + 1, y - r)):
                for cc, wc in ((c, c + 1 - x), (c + 1, x - c)):
                    canvas[i, j] += wr * wc * cell(rr, cc)
    return canvas


@pytest.mark.quick
@pytest.mark.parametrize("config", ["plain", "photo"])
def test_arrays_are_a_function_of_their_arguments(config):
    a, b, c = recipe.make(config, "train", 40), recipe.make(config, "train", 40), recipe.make(config, "train", 40, seed=1)
    assert a["image"].shape == (40, 32, 32, 3) and a["image"].dtype == np.uint8
    assert all(np.array_equal(a[key], b[key]) for key in a)
    assert not np.array_equal(a["image"], c["image"])
    for label, names in recipe.CLASSES[config].items():
        assert a[label].dtype == np.int32 and a[label].min() >= 0 and a[label].max() < len(names)


@pytest.mark.quick
def test_plain_draws_the_digit_it_names():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rows = recipe.make("plain", "train", 12)
    for i in range(12):
        where = [float(rows[key][i]) for key in ("size", "row", "col", "angle")]
        ink = np.clip(2.5 * draw(bunch.images[rows["source_digit"][i]] / 16.0, *where) - 1.0, 0, 1)
        np.testing.assert_allclose(rows["image"][i, :, :, 0], 255 * ink, atol=0.51)
        assert rows["label"][i] == bunch.target[rows["source_digit"][i]]
    sizes, angles = recipe.make("plain", "test", 500)["size"], recipe.make("plain", "test", 500)["angle"]
    assert 12 <= sizes.min() < 13 and 25 < sizes.max() <= 26 and -25 <= angles.min() < -22 and 22 < angles.max() <= 25


@pytest.mark.quick
def test_digits_reach_every_part_of_the_canvas():
    image = recipe.make("plain", "train", 2000)["image"][..., 0]
    reached = image.max(axis=0) > 100
    assert reached[3:-3, 3:-3].all() and reached[:, 1].any() and reached[:, -2].any() and reached[1].any() and reached[-2].any()


@pytest.mark.quick
@pytest.mark.parametrize("config", ["plain", "photo"])
def test_splits_share_no_digit_image(config):
    train, test = (set(recipe.make(config, split, 1500)["source_digit"].tolist()) for split in ("train", "test"))
    assert not train & test
    assert len(train) == 1438 and len(train | test) == 1797


@pytest.mark.quick
def test_splits_share_no_part_of_a_photograph():
    for split in ("train", "test"):
        rows = recipe.make("photo", split, 300)
        for k, name in enumerate(recipe.PHOTOGRAPHS):
            height, width = recipe.photograph(name).shape[:2]
            top, left, tall, wide = rows["crop"][rows["photograph"] == k].T
            assert len(top) and (top >= 0).all() and (top + tall <= height + 1e-2).all()
            cut = int(0.7 * width)
            inside = left + wide <= cut + 1e-2 if split == "train" else left >= cut - 1e-2
            assert inside.all() and (left + wide <= width + 1e-2).all()


@pytest.mark.quick
def test_captions_say_what_is_there():
    rows, names = recipe.make("photo", "test", 200), recipe.CLASSES["photo"]
    for i, caption in enumerate(rows["caption"]):
        words = caption.split()
        assert names["colour"][rows["colour"][i]] in words
        assert names["digit"][rows["digit"][i]] in words or "digit" in words
        assert (f"on {names['photograph'][rows['photograph'][i]]}" in caption) == ("on" in words)
        assert (f"at the {names['place'][rows['place'][i]]}" in caption) == ("at" in words)
    assert len(set(rows["caption"])) > 190
    said = {word for caption in recipe.make("photo", "train", 2000)["caption"] for word in caption.split()}
    for label, templates in recipe.PROMPTS["photo"].items():
        asked = {word for t in templates for name in names[label] for word in t.format(name).split()}
        assert asked <= said, label


@pytest.mark.quick
def test_descriptions_say_what_is_there_and_never_name_it():
    rows, names = recipe.make("photo", "test", 400), list(recipe.PHOTOGRAPHS)
    assert list(recipe.SAID) == names and all(len(set(words.split())) == 10 for words in recipe.SAID.values())
    known = {word for words in recipe.SAID.values() for word in words.split()}
    assert not known & {*recipe.FILLERS, *names}
    for photograph, description in zip(rows["photograph"], rows["description"], strict=True):
        words = description.split()
        said = known & set(words)
        assert len(said) == 3 and said <= set(recipe.SAID[names[photograph]].split())
        assert len(words) <= 12 and len(set(recipe.FILLERS) & set(words)) in (2, 3)
    assert len(set(rows["description"])) > 390
    assert recipe.make("photo", "train", 400)["description"] != rows["description"]


@pytest.mark.quick
def test_photo_paints_the_colour_and_the_place_it_names():
    rows = recipe.make("photo", "train", 400)
    third = np.stack([rows["place"] // 3, rows["place"] % 3], -1)
    centre = np.stack([rows["row"], rows["col"]], -1)
    small = rows["size"] == 0
    for axis in (0, 1):
        means = [centre[small & (third[:, axis] == t), axis].mean() for t in range(3)]
        assert means[0] + 3 < means[1] < means[2] - 3
    for i in range(400):
        distance = np.abs(rows["image"][i].astype(int) - np.array(recipe.COLOURS[list(recipe.COLOURS)[rows["colour"][i]]])).max(-1)
        assert (distance <= 13).sum() >= 4, i


@pytest.mark.quick
def test_unknown_names_are_named():
    with pytest.raises(UserError, match="'poster'.*plain"):
        recipe.make("poster", "train")
    with pytest.raises(UserError, match="'val'.*train"):
        recipe.make("plain", "val")


def test_raw_pixels_say_little_about_the_digit():
    scores = recipe.raw_scores("plain", recipe.make("plain", "train", 4096))["digit"]
    assert 0.1 < scores["logistic"] < 0.30 and scores["knn"] < 0.6, scores
