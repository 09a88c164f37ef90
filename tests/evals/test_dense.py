"""Dense evaluators: metrics against hand-computed cases, probes on features that hold the answer and on features that hold none."""

import numpy as np
import pytest
from sklearn import metrics

from ssljax import evals
from ssljax.data import dense, scenes_recipe
from ssljax.errors import UserError
from ssljax.evals import Context, depth, instances, objects, segmentation, video


def test_miou_and_pixel_accuracy_by_hand():
    mask = np.array([[[0, 0, 1], [1, 255, 2]]])
    predicted = np.array([[[0, 1, 1], [1, 0, 1]]])
    miou, accuracy = segmentation.scores(segmentation.confusion(mask, predicted))
    assert accuracy == pytest.approx(3 / 5)  # the pixel of value 255 counts nowhere
    assert miou == pytest.approx((1 / 2 + 2 / 4 + 0) / 3)


def test_depth_metrics_by_hand():
    out = depth.scores(np.array([[[1.0, 2.0], [0.0, 4.0]]]), np.array([[[1.0, 3.0], [9.0, 4.5]]]))
    assert out["depth_rmse"] == pytest.approx(((0 + 1 + 0.25) / 3) ** 0.5)
    assert out["depth_delta1"] == pytest.approx(2 / 3)


def square(top, left, side=8, edge=3):
    mask = np.zeros((side, side), bool)
    mask[top : top + edge, left : left + edge] = True
    return mask


def test_region_and_boundary_by_hand():
    a, b = square(2, 2), square(2, 3)
    assert video.region(a, b) == pytest.approx(6 / 12)
    assert video.boundary(a, a) == 1.0 and video.region(a, a) == 1.0
    assert video.boundary(a, b) == 1.0  # a pixel apart, which is within the tolerance
    assert video.boundary(square(0, 0), square(5, 5)) == 0.0
    empty = np.zeros_like(a)
    assert video.region(empty, empty) == 1.0 and video.boundary(empty, empty) == 1.0 and video.boundary(a, empty) == 0.0


def test_the_first_and_the_last_frame_of_a_video_do_not_count():
    truth = np.stack([square(0, 0), square(0, 0), square(4, 4)]).astype(int)
    assert video.score(truth, truth) == (1.0, 1.0)
    wrong = truth.copy()
    wrong[[0, 2]] = 0
    assert video.score(truth, wrong) == (1.0, 1.0)
    wrong[1] = 0
    assert video.score(truth, wrong) == (0.0, 0.0)


def test_labels_are_carried_along_with_the_patches_that_look_alike():
    rng = np.random.default_rng(0)
    background, thing = rng.normal(size=(2, 16))
    masks = np.stack([square(0, 0, edge=4), square(0, 4, edge=4), square(4, 4, edge=4)]).astype(int)  # (T, 8, 8)
    patches = np.where(masks[:, ::2, ::2, None], thing, background) + 0.05 * rng.normal(size=(3, 4, 4, 16))
    np.testing.assert_array_equal(video.carry(patches, masks[0])[:, ::2, ::2], masks[:, ::2, ::2])
    assert video.score(masks, video.carry(patches, masks[0]))[0] > 0.7  # to the pixel it is blurred by the enlargement


def test_attention_is_cut_at_its_mass():
    object_ = np.zeros((1, 4, 4), bool)
    object_[:, :2, :2] = True
    attention = np.array([[[[0.7, 0.1], [0.1, 0.1]], [[0.4, 0.3], [0.2, 0.1]]]])  # heads: the object's patch; it and the one beside it
    np.testing.assert_allclose(objects.jaccard(attention, object_), [1.0])
    np.testing.assert_allclose(objects.jaccard(attention[:, 1:], object_), [0.5])


def test_average_precision_is_scikit_learns():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(60, 5)), np.append(rng.integers(0, 4, 59), 9)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    wanted = [
        metrics.average_precision_score(np.delete(labels == labels[i], i), np.delete(unit @ unit[i], i)) for i in range(59)
    ]  # the last one has no other of its class
    np.testing.assert_allclose(instances.average_precision(x, labels, chunk=7), wanted, atol=1e-6)


def looked_at(truth, noise=0.5):
    """A context whose encoder gives, of a picture, patches that say what is there: the truth's mean over each, and noise."""

    def look(images):
        rng = np.random.default_rng(0)
        blocks = np.stack([truth(image) for image in images])
        return {"features": blocks.mean((1, 2)), "patches": blocks + noise * rng.normal(size=blocks.shape)}

    return look


def test_a_segmentation_probe_reads_what_patches_say_and_cannot_read_noise():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 3, (96, 4, 4))
    mask = coarse.repeat(4, 1).repeat(4, 2)
    told = np.eye(3)[coarse] @ rng.normal(size=(3, 8)) + 0.1 * rng.normal(size=(96, 4, 4, 8))
    score = lambda x: segmentation.scores(segmentation.confusion(mask[64:], segmentation.predict(x[:64], mask[:64], x[64:], steps=200)))  # noqa: E731
    assert score(told)[0] > 0.6  # bilinear logits blur the borders of 4 x 4 pixels
    assert score(rng.normal(size=told.shape))[0] < 0.3


def test_a_depth_probe_reads_what_patches_say():
    rng = np.random.default_rng(0)
    coarse = rng.uniform(1, 4, (160, 2, 2))
    truth = coarse.repeat(4, 1).repeat(4, 2)
    told = np.stack([coarse, coarse**2, np.log(coarse)], -1) + 0.01 * rng.normal(size=(160, 2, 2, 3))
    out = depth.scores(truth[128:], depth.predict(told[:128], truth[:128], told[128:], steps=300))
    none = depth.scores(truth[128:], np.full_like(truth[128:], truth[:128].mean()))
    assert out["depth_rmse"].mean() < 0.75 * none["depth_rmse"].mean()


def test_evaluators_say_what_they_lack():
    context = Context(train={}, test={}, classes=2, dense=lambda kind, split: dense.load("scenes/masks", kind, split, 32, most=4))
    for name in ("segmentation", "objects"):
        with pytest.raises(evals.NotApplicable, match="map of patches|class token"):
            evals.load(name).run(context)
    with pytest.raises(evals.NotApplicable, match="no pictures with depth"):
        depth.run(Context(train={}, test={}, classes=2))


# ------------------------------------------------------------------------------------------------------------------ the pictures
def test_masks_are_where_the_digit_is_painted():
    found = scenes_recipe.masks("test", 32)
    assert found["mask"].shape == (32, 32, 32) and set(np.unique(found["mask"])) <= set(range(len(scenes_recipe.SURFACES)))
    scene = scenes_recipe.make("photo", "test", 32)
    np.testing.assert_array_equal(found["image"], scene["image"])
    inside = found["mask"] == 0
    paint = np.array(list(scenes_recipe.COLOURS.values()))[scene["colour"]]
    far = np.abs(found["image"].astype(float) - paint[:, None, None]).max(-1)
    assert np.median(far[inside]) < 60 < np.median(far[~inside])
    np.testing.assert_array_equal(found["mask"].max((1, 2)), 1 + scene["photograph"])


def test_near_digits_hide_far_ones_and_are_larger():
    found = scenes_recipe.layers("train", 64)
    depth_of = found["depth"]
    assert depth_of.dtype == np.float32 and depth_of.min() > 1 and depth_of.max() == scenes_recipe.FAR
    area = lambda low, high: ((depth_of >= low) & (depth_of < high)).sum((1, 2)).mean()  # noqa: E731
    assert area(1.0, 1.5) > 1.5 * area(2.0, 2.5)  # as many of either, drawn evenly
    again = scenes_recipe.layers("train", 64)
    np.testing.assert_array_equal(found["image"], again["image"])


def test_digits_move_over_a_still_photograph():
    found = scenes_recipe.moving("test", 8)
    assert found["video"].shape == (8, scenes_recipe.FRAMES, 32, 32, 3) and set(np.unique(found["mask"])) == {0, 1, 2}
    still = (found["mask"] == 0).all(1)
    spread = found["video"].astype(int).max(1) - found["video"].astype(int).min(1)
    assert np.mean(spread[still].max(-1) <= 40) > 0.7  # but for the blurred rims of the strokes
    first, last = found["mask"][:, 0], found["mask"][:, -1]
    assert np.mean((first == 2) & (last == 2)) < np.mean(first == 2)


def test_sets_are_resized_and_unknown_ones_refused():
    small = dense.load("scenes/masks", "masks", "test", 16, most=4)
    assert small["image"].shape == (4, 16, 16, 3) and small["mask"].shape == (4, 16, 16)
    with pytest.raises(UserError, match="expected scenes/layers or tfds:NAME"):
        dense.load("scenes/masks", "depth", "test", 32)
    with pytest.raises(UserError, match="pictures with masks 'tfds:nothing_like_it'"):
        dense.load("tfds:nothing_like_it", "masks", "test", 32)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A TFDS data directory with three sets of the layouts of ADE20K (scene_parse150), NYU Depth v2, DAVIS: two records each, 12 x 20."""
    import tensorflow_datasets as tfds

    where = tmp_path_factory.mktemp("tfds")
    picture, truth = tfds.features.Image(shape=(12, 20, 3)), tfds.features.Image(shape=(12, 20, 1))
    layouts = {
        "small_ade": {"image": picture, "annotation": truth},
        "small_nyu": {"image": picture, "depth": tfds.features.Tensor(shape=(12, 20), dtype=np.float32)},
        "small_davis": {
            "video": {
                "frames": tfds.features.Sequence(picture),
                "segmentations": tfds.features.Sequence(truth),
            },
            "metadata": {"num_frames": tfds.features.Scalar(np.int64)},
        },
    }

    def record(name, i):
        rows, columns = np.mgrid[:12, :20]
        image = np.stack([10 * i + rows, columns, 0 * rows], -1).astype(np.uint8)
        mask = ((columns >= 10).astype(np.uint8) + i)[..., None]
        if name == "small_davis":
            frames = 3 + i
            return {
                "video": {"frames": np.stack([image + t for t in range(frames)]), "segmentations": np.stack([mask] * frames)},
                "metadata": {"num_frames": frames},
            }
        return {"image": image} | ({"annotation": mask} if name == "small_ade" else {"depth": (rows + i).astype(np.float32)})

    for name, features in layouts.items():
        parts = {
            "_info": lambda self, features=features: tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features)),
            "_split_generators": lambda self, dl_manager, name=name: {
                "validation" if name == "small_davis" else "test": ((i, record(name, i)) for i in range(2))
            },
            "_generate_examples": lambda self: (),
        }
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), {"name": name, "VERSION": tfds.core.Version("1.0.0"), **parts})
        builder(data_dir=str(where), file_format="array_record").download_and_prepare()
    return where


def test_prepared_sets_of_the_fields_layouts_are_read(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    found = dense.load("tfds:small_ade", "masks", "test", 8)
    assert found["image"].shape == (2, 8, 8, 3) and found["image"].dtype == np.uint8 and found["mask"].dtype == np.int32
    order = np.argsort(found["mask"][:, 0, 0])  # records are stored in an order of TFDS's own
    np.testing.assert_array_equal(found["mask"][order], np.arange(2)[:, None, None] + (np.arange(8) >= 4) + np.zeros((1, 8, 1), int))
    depth = dense.load("tfds:small_nyu", "depth", "test", 12)["depth"]
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(np.sort(depth[:, :, 0], 0), np.arange(12) + np.arange(2)[:, None])
    clips = dense.load("tfds:small_davis", "video", "test", 8)
    assert clips["video"].shape == (2, 3, 8, 8, 3) and clips["mask"].shape == (2, 3, 8, 8)  # of the shorter one's length
    with pytest.raises(UserError, match="a record needs depth or depth_map, it has annotation, image"):
        dense.load("tfds:small_ade", "depth", "test", 8)
    with pytest.raises(UserError, match="split 'train'"):
        dense.load("tfds:small_ade", "masks", "train", 8)
