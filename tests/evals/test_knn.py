import numpy as np
import pytest

from ssljax.evals import Context, NotApplicable, knn

pytestmark = pytest.mark.quick


def data(n=150, m=40, d=8, classes=6, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, d))
    y, z = rng.integers(classes, size=n), rng.integers(classes, size=m)
    x, q = centres[y] + rng.normal(size=(n, d)), centres[z] + rng.normal(size=(m, d))
    return x.astype(np.float32), y, q.astype(np.float32), z


def reference(x, y, q, classes, k, temperature):
    """DINO's rule, in float64, one row at a time."""
    x, q = (a.astype(np.float64) / np.linalg.norm(a.astype(np.float64), axis=1, keepdims=True) for a in (x, q))
    scores = np.zeros((len(q), classes))
    for i, row in enumerate(q @ x.T):
        for j in np.argsort(-row, kind="stable")[:k]:
            scores[i, y[j]] += np.exp(row[j] / temperature)
    return scores / scores.sum(1, keepdims=True)


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (5, 0.07), (20, 0.5)])
def test_scores_are_the_definition(k, temperature):
    x, y, q, _ = data()
    ours = knn.knn_predict(x, y, q, classes=6, k=k, temperature=temperature)
    assert ours.dtype == np.float32 and ours.shape == (40, 6)
    np.testing.assert_allclose(ours, reference(x, y, q, 6, k, temperature), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 16, 64, 100, 10_000])
def test_chunks_change_nothing(chunk):
    x, _, q, _ = data()
    similarities, indices = knn.neighbours(x, q, k=7, chunk=chunk)
    whole = knn.neighbours(x, q, k=7)
    np.testing.assert_array_equal(indices, whole[1])
    np.testing.assert_allclose(similarities, whole[0], rtol=1e-6)


def test_many_rows_against_sklearn():
    """More train rows than a chunk's groups, so that the grouped top-k is what runs."""
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(1)
    x, q = rng.normal(size=(5000, 6)).astype(np.float32), rng.normal(size=(300, 6)).astype(np.float32)
    distances, indices = NearestNeighbors(n_neighbors=4, metric="cosine").fit(x.astype(np.float64)).kneighbors(q.astype(np.float64))
    for chunk in (1024, 8192):
        similarities, ours = knn.neighbours(x, q, k=4, chunk=chunk)
        np.testing.assert_array_equal(ours, indices)
        np.testing.assert_allclose(1 - similarities, distances, atol=1e-6)


def test_ties_go_to_the_lower_index():
    x = np.tile(np.float32([[1, 0], [0, 1]]), (600, 1))
    _, indices = knn.neighbours(x, np.float32([[1, 0]]), k=3, chunk=512)
    np.testing.assert_array_equal(indices, [[0, 2, 4]])


def test_without_normalising_length_counts():
    x = np.float32([[1, 0], [5, 5]])
    q = np.float32([[1, 0.1]])
    assert knn.knn_predict(x, [0, 1], q, classes=2, k=1).argmax() == 0
    assert knn.knn_predict(x, [0, 1], q, classes=2, k=1, normalise=False).argmax() == 1


def test_k_beyond_the_train_set_and_long_features():
    scores = knn.knn_predict(np.float32([[1e3, 0], [0, 1e3]]), [1, 0], np.float32([[1e3, 1]]), classes=2, k=20, normalise=False)
    np.testing.assert_allclose(scores, [[0, 1]])  # exp(1e6 / 0.07) alone would be infinite


def test_run():
    x, y, q, z = data()
    context = Context(train={"features": x, "label": y}, test={"features": q, "label": z}, classes=6)
    expected = np.mean(reference(x, y, q, 6, 20, 0.07).argmax(1) == z)
    assert np.mean(knn.run(context)["knn_top1"]) == pytest.approx(expected)
    with pytest.raises(NotApplicable, match="train set gives no label"):
        knn.run(Context(train={"features": x}, test={"features": q, "label": z}, classes=6))
