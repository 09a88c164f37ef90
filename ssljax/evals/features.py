"""Frozen features of a data set, extracted once for all evaluators; and the few array helpers the evaluators share."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh


def extract(embed_fn: Callable, batches: Iterable[dict], put: Callable | None = None, *, images: int = 0) -> dict[str, np.ndarray]:
    """Embeds padded evaluation batches and returns every valid example once, in the batches' order, on every process.

    embed_fn: jitted; a batch on the device -> {"features": (B, D), ...}, arrays with one row an example.
    batches:  dicts of numpy arrays with leading axis B, this process's rows; "valid" bool (B,) is False on padding
              rows (absent: all are valid). All batches of one shape, so that embed_fn is traced once, and as many on
              each process, so that none waits for ever.
    put:      host batch -> (sharded, global) device arrays; by default the whole batch goes to the default device.
    images:   keep the first so many images, uint8, under "image".

    Returns numpy arrays of N rows: what embed_fn gives, as float32, and every one-dimensional integer key of the
    batches (label, id, ...). In a run of several processes rows are gathered by where they lie in the global array, so
    labels stay beside their features.
    """
    put = put or (lambda batch: jax.tree.map(jnp.asarray, batch))
    rows: list[dict[str, np.ndarray]] = []
    kept = 0
    waiting = None  # a batch is fetched only after the next has been sent, so that host and device overlap
    for batch in batches:
        device_batch = put(batch)
        out = dict(embed_fn(device_batch))
        columns = {k: device_batch[k] for k, v in batch.items() if v.ndim == 1 and np.issubdtype(v.dtype, np.integer)}
        if "valid" in batch:
            columns["valid"] = device_batch["valid"]
        if images and "image" in batch:
            columns["image"] = device_batch["image"]
        if waiting is not None:
            rows.append(_fetch(waiting, images - kept))
            kept += len(rows[-1].get("image", ()))
        waiting = columns | out
        if kept >= images:
            waiting.pop("image", None)
    if waiting is not None:
        rows.append(_fetch(waiting, images - kept))
    keys = dict.fromkeys(k for r in rows for k in r)
    return {k: np.concatenate([r[k] for r in rows if k in r]) for k in keys}


def _fetch(arrays: dict[str, jax.Array], images: int) -> dict[str, np.ndarray]:
    """Device arrays of one batch -> host arrays of its valid rows; of the images the first so many."""
    if jax.process_count() > 1:
        arrays = multihost_utils.process_allgather(arrays, tiled=True)
    arrays = {k: np.asarray(v) for k, v in arrays.items()}
    valid = arrays.pop("valid", None)
    if valid is not None:
        arrays = {k: v[valid] for k, v in arrays.items()}
    if "image" in arrays:
        arrays["image"] = arrays["image"][: max(images, 0)]
    return {k: v if v.dtype == np.uint8 or np.issubdtype(v.dtype, np.integer) else v.astype(np.float32) for k, v in arrays.items()}


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) -> float32 (N, H*W*3) in [-1, 1]: the baseline every learned feature has to beat."""
    return images.reshape(len(images), -1).astype(np.float32) / 127.5 - 1.0


def unit_norm(x, eps: float = 1e-12):
    """Last axis scaled to unit L2 norm, float32; zeros stay zero."""
    x = jnp.asarray(x, jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), eps)


@jax.jit
def similarities(a, b):
    """Of every row of a with every row of b, float32 (M, N): of vectors (M, E), (N, E) their products; of tokens (M, P, E), (N, T, E) the
    mean over a's tokens of the largest product with one of b's (FILIP, Yao et al. 2021, equations 3 and 4), a row of a at a time. A token
    of zeros is none.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    if a.ndim == 2:
        return jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)
    there = jnp.any(b != 0, axis=-1)  # (N, T)

    def row(tokens):
        best = jnp.where(there, jnp.einsum("pe,nte->pnt", tokens, b, precision="highest"), -jnp.inf).max(-1)  # (P, N)
        mine = jnp.any(tokens != 0, axis=-1)[:, None]
        return jnp.where(mine, best, 0.0).sum(0) / jnp.maximum(mine.sum(), 1)

    return lax.map(row, a)


def local_mesh() -> Mesh:
    """This process's devices in a row, axis "rows": every process evaluates the gathered features by itself, with all
    its devices.
    """
    return Mesh(np.array(jax.local_devices()), ("rows",))


def pad_rows(x, multiple: int):
    """Zero rows appended until the number of rows is a positive multiple of `multiple`."""
    x = np.asarray(x)
    extra = max(-(-len(x) // multiple), 1) * multiple - len(x)
    return np.concatenate([x, np.zeros((extra, *x.shape[1:]), x.dtype)]) if extra else x
