import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import ssljax.evals as evals
from ssljax.errors import UserError
from ssljax.evals import features

pytestmark = pytest.mark.quick

W = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)


def batches(n=21, size=8):
    rng = np.random.default_rng(1)
    image, label = rng.integers(256, size=(n, 2, 2, 3), dtype=np.uint8), rng.integers(3, size=n).astype(np.int32)
    columns = {
        "image": image,
        "label": label,
        "label:colour": 2 - label,
        "id": np.arange(n, dtype=np.int32),
        "text": np.ones((n, 4), np.int32),
    }
    out = []
    for i in range(0, n, size):
        batch = {k: v[i : i + size] for k, v in columns.items()}
        rows = len(batch["id"])
        batch = {k: np.concatenate([v, np.full((size - rows, *v.shape[1:]), 77, v.dtype)]) for k, v in batch.items()}
        out.append(batch | {"valid": np.arange(size) < rows})
    return columns, out


@jax.jit
def embed(batch):
    x = batch["image"].reshape(len(batch["image"]), -1) / 255.0
    return {"features": (x @ W).astype(jnp.bfloat16), "text_embedding": batch["text"][:, :2] * 1.0}


def spread(devices):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    return lambda batch: {k: jax.device_put(v, NamedSharding(mesh, P("data"))) for k, v in batch.items()}


@pytest.mark.parametrize("put", [None, spread(1), spread(8)], ids=["default", "1 device", "8 devices"])
def test_extract_counts_every_example_once(put):
    assert jax.device_count() == 8
    columns, padded = batches()
    out = features.extract(embed, padded, put, images=10)
    assert set(out) == {"features", "text_embedding", "label", "label:colour", "id", "image"}
    for key in ("label", "label:colour", "id"):
        np.testing.assert_array_equal(out[key], columns[key])
    np.testing.assert_array_equal(out["image"], columns["image"][:10])
    assert out["features"].dtype == np.float32 and out["text_embedding"].shape == (21, 2)
    expected = columns["image"].reshape(21, -1).astype(np.float64) / 255 @ W
    np.testing.assert_allclose(out["features"], expected, rtol=1e-2, atol=1e-2)


def test_extract_is_the_same_on_eight_devices_and_traces_once():
    traces = []

    @jax.jit
    def counted(batch):
        traces.append(1)
        return {"features": jnp.sin(batch["image"].reshape(len(batch["image"]), -1) * 1.0)}

    one = features.extract(counted, batches()[1], spread(1))
    assert len(traces) == 1
    eight = features.extract(counted, batches()[1], spread(8))
    assert one.keys() == eight.keys() and "image" not in one
    for key in one:
        np.testing.assert_array_equal(one[key], eight[key])


def test_extract_without_valid_and_of_nothing():
    _, padded = batches(n=16)
    for batch in padded:
        del batch["valid"]
    assert len(features.extract(embed, padded)["features"]) == 16
    assert features.extract(embed, []) == {}


def test_raw_pixels():
    pixels = features.raw_pixels(np.array([[[[0, 255, 51]]]], np.uint8))
    np.testing.assert_allclose(pixels, [[-1, 1, -0.6]], atol=1e-6)


def test_evaluators_are_there_by_being_files():
    names = evals.available()
    assert {"knn", "linear", "zeroshot", "retrieval", "rankme"} <= set(names) and "features" not in names
    for name in names:
        module = evals.load(name)
        assert callable(module.run) and isinstance(module.NEEDS, str)
    with pytest.raises(UserError, match="'knnn'.*knn"):
        evals.load("knnn")
