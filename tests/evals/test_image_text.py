"""Retrieval and zero-shot."""

import numpy as np
import pytest

from ssljax.evals import Context, NotApplicable, retrieval, zeroshot
from ssljax.evals.features import similarities

pytestmark = pytest.mark.quick


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pairs(n=37, d=6, seed=0):
    rng = np.random.default_rng(seed)
    image = unit(rng.normal(size=(n, d)))
    return image.astype(np.float32), unit(image + 0.8 * rng.normal(size=(n, d))).astype(np.float32)


def reference_ranks(a, b):
    order = np.argsort(-(a.astype(np.float64) @ b.astype(np.float64).T), axis=1, kind="stable")
    return np.array([list(row).index(i) for i, row in enumerate(order)])


@pytest.mark.parametrize("chunk", [1, 8, 37, 1024])
def test_ranks(chunk):
    a, b = pairs()
    np.testing.assert_array_equal(retrieval.ranks(a, b, chunk=chunk), reference_ranks(a, b))


def test_ranks_of_ties_favour_the_lower_index():
    a = np.float32([[1, 0], [1, 0], [0, 1], [1, 0]])
    np.testing.assert_array_equal(retrieval.ranks(a, a), [0, 1, 0, 2])


def test_retrieval_metrics():
    image, text = pairs()
    out = retrieval.evaluate(image, text, at=(1, 5, 10))
    for name, a, b in (("image_to_text", image, text), ("text_to_image", text, image)):
        r = reference_ranks(a, b)
        for k in (1, 5, 10):
            assert out[f"retrieval_{name}_r{k}"] == pytest.approx(np.mean(r < k))
        assert out[f"retrieval_{name}_mean_rank"] == pytest.approx(np.mean(r + 1))
        assert out[f"retrieval_{name}_median_rank"] == np.floor(np.median(r + 1))
    with pytest.raises(ValueError, match="37 and 36"):
        retrieval.ranks(image, text[:-1])


def test_retrieval_run_counts_within_pools():
    image, text = pairs(n=450)
    out = retrieval.run(Context({}, {"image_embedding": image, "text_embedding": text}, classes=2))
    pools = [reference_ranks(image[i : i + 200], text[i : i + 200]) for i in (0, 200)]
    assert out["retrieval200_image_to_text_r1"] == pytest.approx(np.concatenate(pools) == 0)
    assert np.mean(out["retrieval200_image_to_text_r1"]) >= np.mean(out["retrieval_image_to_text_r1"])
    with pytest.raises(NotApplicable, match="text_embedding"):
        retrieval.run(Context({}, {"image_embedding": image}, classes=2))


def test_tokens_are_compared_by_the_mean_of_each_ones_best():
    """FILIP, equations 3 and 4, in float64, one pair at a time; texts of 3 to 5 words, zeros behind them."""
    rng = np.random.default_rng(0)
    patches, words = unit(rng.normal(size=(7, 6, 8))), unit(rng.normal(size=(7, 5, 8)))
    length = rng.integers(3, 6, 7)
    words *= (np.arange(5) < length[:, None])[..., None]
    to_text = np.array([[np.mean((x @ y[:n].T).max(1)) for y, n in zip(words, length, strict=True)] for x in patches])
    to_image = np.array([[np.mean((y[:n] @ x.T).max(1)) for x in patches] for y, n in zip(words, length, strict=True)])
    single = lambda x: x.astype(np.float32)  # noqa: E731
    np.testing.assert_allclose(similarities(single(patches), single(words)), to_text, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(similarities(single(words), single(patches)), to_image, rtol=1e-5, atol=1e-6)
    place = lambda s: (s > np.diag(s)[:, None]).sum(1)  # noqa: E731
    np.testing.assert_array_equal(retrieval.ranks(single(patches), single(words), chunk=4), place(to_text))
    np.testing.assert_array_equal(retrieval.ranks(single(words), single(patches)), place(to_image))
    # Three classes in two templates: similarities are averaged.
    prompts = single(words[:6].reshape(3, 2, 5, 8))
    logits = zeroshot.logits(single(patches), zeroshot.zero_shot_classifier(prompts))
    np.testing.assert_allclose(logits, to_text[:, :6].reshape(7, 3, 2).mean(-1), rtol=1e-5, atol=1e-6)


def test_zero_shot_classifier_is_the_definition():
    rng = np.random.default_rng(0)
    templates = rng.normal(size=(6, 4, 10))
    images, labels = rng.normal(size=(40, 10)), rng.integers(6, size=40)
    expected = unit(unit(templates).mean(1)).T
    classifier = zeroshot.zero_shot_classifier(templates.astype(np.float32))
    np.testing.assert_allclose(classifier, expected, rtol=1e-5, atol=1e-6)
    accuracy = np.mean((images @ expected).argmax(1) == labels)
    assert zeroshot.evaluate(images.astype(np.float32), labels, classifier) == {"zeroshot_top1": pytest.approx(accuracy)}


def test_zero_shot_of_several_kinds():
    """A text tower that knows words by direction: colours on the first axes, digits on the others."""
    words = {w: np.eye(5)[i] for i, w in enumerate(("red", "blue", "one", "two", "three"))}

    def text_embed(texts):
        return np.stack([sum(words.get(w, 0 * words["red"]) for w in t.split()) for t in texts]).astype(np.float32)

    image = text_embed(["red one", "blue three", "red two", "blue one"])
    test = {"image_embedding": image, "label:colour": np.array([0, 1, 0, 0]), "label:digit": np.array([0, 2, 1, 0])}
    context = Context(
        train={}, test=test, classes=3, text_embed=text_embed,
        class_names={"colour": ["red", "blue"], "digit": ["one", "two", "three"], "place": ["top"]},
        prompts={"colour": ["a {} digit", "the {} thing"], "digit": ["a picture of {}"], "place": ["at the {}"]},
    )  # fmt: skip
    assert {k: np.mean(v) for k, v in zeroshot.run(context).items()} == {"zeroshot_colour": 0.75, "zeroshot_digit": 1.0}
    with pytest.raises(NotApplicable, match="no text tower"):
        zeroshot.run(Context(train={}, test=test, classes=3))
    only = Context(
        {},
        {"image_embedding": image, "label": test["label:digit"]},
        3,
        text_embed,
        context.class_names,
        {"digit": ["{}"]},
    )
    assert {k: np.mean(v) for k, v in zeroshot.run(only).items()} == {"zeroshot_digit": 1.0}
