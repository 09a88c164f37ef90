"""Image-text retrieval: how high the partner of each image stands among all texts, and the other way round."""

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.evals import Context, need
from ssljax.evals.features import pad_rows, similarities

NEEDS = "image_embedding and text_embedding of the test set"

POOL = 200  # partners among which `run` counts a second time, so that small and large test sets can be compared


def run(context: Context) -> dict:
    """`found` over the whole test set, and recall within consecutive pools of 200 pairs ("retrieval200_...") when
    there is at least one.
    """
    need(context, test=("image_embedding", "text_embedding"))
    image, text = context.test["image_embedding"], context.test["text_embedding"]
    out = found(image, text, (1, 5, 10))
    pools = len(image) // POOL
    if pools:
        for name, a, b in (("image_to_text", image, text), ("text_to_image", text, image)):
            r = np.concatenate([ranks(a[i * POOL : (i + 1) * POOL], b[i * POOL : (i + 1) * POOL]) for i in range(pools)])
            out[f"retrieval{POOL}_{name}_r1"] = r < 1
    return out


def evaluate(image, text, at: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Row i of `image` (N, E) belongs to row i of `text` (N, E); or (N, P, E) and (N, T, E), of tokens (`features.similarities`).

    Both ways, under retrieval_image_to_text_* and retrieval_text_to_image_*: r1, r5, ... = fraction whose partner is
    among the first 1, 5, ...; mean_rank and median_rank counted from 1, the median rounded down (as open_clip reports
    it).
    """
    return {name: float(np.mean(value)) for name, value in found(image, text, at).items()}


def found(image, text, at) -> dict:
    """`evaluate` before the mean: of recalls, whether each is found."""
    out = {}
    for name, a, b in (("image_to_text", image, text), ("text_to_image", text, image)):
        r = ranks(a, b)
        out |= {f"retrieval_{name}_r{k}": r < k for k in at}
        out[f"retrieval_{name}_mean_rank"] = float(np.mean(r) + 1)
        out[f"retrieval_{name}_median_rank"] = float(np.floor(np.median(r)) + 1)
    return out


def ranks(a, b, *, chunk: int = 1024) -> np.ndarray:
    """int (N,): the 0-based place of b_i when all rows of b are sorted by their similarity with a_i, greatest first;
    ties: lower index first.

    a, b: (N, E), or tokens (`features.similarities`). Holds chunk x N similarities at a time.
    """
    n = len(a)
    if len(b) != n:
        raise ValueError(f"retrieval needs as many rows on both sides, got {n} and {len(b)}")
    chunk = min(chunk, n)
    padded, b = pad_rows(a, chunk), jnp.asarray(b, jnp.float32)
    parts = [_ranks(padded[i : i + chunk], b, i) for i in range(0, n, chunk)]
    return np.concatenate([np.asarray(p) for p in parts])[:n]


@jax.jit
def _ranks(rows, b, start):
    sims = similarities(rows, b)  # (chunk, N)
    partner = start + jnp.arange(len(rows))
    own = jnp.take_along_axis(sims, partner[:, None], axis=1, mode="clip")  # of the same product: equal to itself
    ahead = (sims > own) | ((sims == own) & (jnp.arange(len(b)) < partner[:, None]))
    return ahead.sum(1)
