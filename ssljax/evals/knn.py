"""Weighted k-nearest neighbours on frozen features, as InstDisc (Wu et al. 2018, section 3.4) and DINO (Caron et al.
2021) report it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from ssljax.evals import Context, need
from ssljax.evals.features import local_mesh, pad_rows, unit_norm

NEEDS = "features and label of the train and the test set"

GROUP = 16  # similarities a group in `_top_k`; 8 to 32 are equally fast


def run(context: Context) -> dict:
    """{"knn_top1": right or wrong of each test example} with k = 20 and temperature 0.07."""
    need(context, train=("features", "label"), test=("features", "label"))
    return {"knn_top1": right(context.train, context.test, classes=context.classes)}


def right(train: dict, test: dict, *, classes: int, k: int = 20, temperature: float = 0.07) -> np.ndarray:
    """Whether the class of greatest score is that of the test row, (M,)."""
    scores = knn_predict(train["features"], train["label"], test["features"], classes=classes, k=k, temperature=temperature)
    return scores.argmax(1) == np.asarray(test["label"])


def evaluate(train: dict, test: dict, *, classes: int, k: int = 20, temperature: float = 0.07) -> dict[str, float]:
    """{"knn_top1": accuracy in [0, 1]} of test["features"] (M, D) against test["label"] (M,), with train as the
    memory.
    """
    return {"knn_top1": float(np.mean(right(train, test, classes=classes, k=k, temperature=temperature)))}


def knn_predict(
    train_features,
    train_labels,
    test_features,
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 8192,
    normalise: bool = True,
) -> np.ndarray:
    """Class scores from the k nearest train rows: score_c = sum over neighbours j of class c of w_j, w_j proportional
    to exp(sim_j / temperature).

    train_features (N, D), train_labels int (N,), test_features (M, D) -> float32 (M, classes), a row's scores summing
    to one (the common factor of a row, which could overflow, is divided out; the order of classes is that of the plain
    sums).
    """
    return vote(neighbours(train_features, test_features, k=k, chunk=chunk, normalise=normalise), train_labels, classes, k, temperature)


def vote(found, train_labels, classes, k, temperature):
    """`knn_predict` of what `neighbours` found, of which the first k count."""
    similarities, indices = (x[:, :k] for x in found)
    labels = np.asarray(train_labels)[indices]  # (M, k)
    weights = jax.nn.softmax(similarities / temperature, axis=-1)
    scores = jax.vmap(lambda w, y: jnp.zeros(classes).at[y].add(w))(weights, jnp.asarray(labels))
    return np.asarray(scores)


def neighbours(train_features, test_features, *, k: int = 20, chunk: int = 8192, normalise: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest train rows of each test row: similarities float32 (M, k), best first, and indices int32 (M, k).

    Of equal similarities the lower index comes first. Similarity is cosine, or the plain dot product with
    normalise=False. Test rows are spread over this process's devices; a device holds the train features and one block
    of 1024 x `chunk` similarities, whatever N and M are. k is cut to N.
    """
    prepare = unit_norm if normalise else functools.partial(jnp.asarray, dtype=jnp.float32)
    n, m = len(train_features), len(test_features)
    k = min(k, n)
    chunk = -(-max(min(chunk, n), k) // GROUP) * GROUP
    train = prepare(pad_rows(train_features, chunk))
    train = train.reshape(-1, chunk, train.shape[1])  # (N / chunk, chunk, D)
    mesh = local_mesh()
    block = 1024 * mesh.size if m > 1024 * mesh.size else -(-m // mesh.size) * mesh.size
    search = _compiled(mesh, k)
    test = pad_rows(test_features, block)
    found = [search(prepare(test[i : i + block]), train, n) for i in range(0, len(test), block)]
    similarities, indices = zip(*found, strict=True)
    return np.concatenate(similarities)[:m], np.concatenate(indices)[:m]


@functools.cache
def _compiled(mesh, k: int):
    """`_search` with its test rows spread over the mesh; kept, because a run in training asks again and again."""
    search = functools.partial(_search, k=k)
    search = jax.shard_map(search, mesh=mesh, in_specs=(P("rows"), P(), P()), out_specs=P("rows"), check_vma=False)
    return jax.jit(search)


def _search(queries, train, n, *, k: int):
    """queries (Q, D), train (chunks, chunk, D) of which the first n rows are real -> similarities and indices of the
    best k, (Q, k).
    """
    chunk = train.shape[1]

    def step(best, block):
        start, rows = block
        sims = jnp.matmul(queries, rows.T, precision=lax.Precision.HIGHEST)  # (Q, chunk)
        sims = jnp.where(start + jnp.arange(chunk) < n, sims, -jnp.inf)
        values, columns = _top_k(sims, k)
        values = jnp.concatenate([best[0], values], axis=1)  # earlier rows first, so ties keep the lower index
        indices = jnp.concatenate([best[1], start + columns], axis=1)
        values, columns = lax.top_k(values, k)
        return (values, jnp.take_along_axis(indices, columns, axis=1)), None

    best = jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32)
    starts = chunk * jnp.arange(len(train), dtype=jnp.int32)
    return lax.scan(step, best, (starts, train))[0]


def _top_k(sims, k: int):
    """lax.top_k along axis 1, about twice as fast: the k greatest lie in the k groups of greatest maximum, so only
    those are sorted.

    Ties too come out as from lax.top_k, lower index first, because the chosen groups are put back in their order.
    """
    rows, columns = sims.shape
    if columns <= 2 * k * GROUP:
        return lax.top_k(sims, k)
    groups = sims.reshape(rows, columns // GROUP, GROUP)
    chosen = jnp.sort(lax.top_k(groups.max(-1), k)[1], axis=1)  # (rows, k)
    values, at = lax.top_k(jnp.take_along_axis(groups, chosen[:, :, None], axis=1).reshape(rows, k * GROUP), k)
    return values, jnp.take_along_axis(chosen, at // GROUP, axis=1) * GROUP + at % GROUP
