"""Instance retrieval: every test example asks for the others of its class; mean average precision of their order by cosine."""

import numpy as np

from ssljax.evals import Context, need
from ssljax.evals.features import unit_norm

NEEDS = "features and labels of the test set"


def run(context: Context) -> dict:
    """{"instances_map": average precision of each test example that has another of its class}."""
    need(context, test=("features", "label"))
    return {"instances_map": average_precision(context.test["features"], context.test["label"])}


def average_precision(features, labels, *, chunk: int = 512) -> np.ndarray:
    """Over features (N, D) by cosine, the example itself left out -> (queries,): mean over a query's matches, in the order in which they
    come, of the share of matches up to there (Philbin et al. 2007). Ties: the lower index first."""
    x, labels = np.asarray(unit_norm(features)), np.asarray(labels)
    out = []
    for start in range(0, len(x), chunk):
        rows = np.arange(start, min(start + chunk, len(x)))
        like = x[rows] @ x.T
        like[np.arange(len(rows)), rows] = -np.inf
        order = np.argsort(-like, axis=1, kind="stable")[:, :-1]
        match = labels[order] == labels[rows, None]
        precision = np.cumsum(match, 1) / np.arange(1, match.shape[1] + 1)
        count = match.sum(1)
        out.append(((precision * match).sum(1) / np.maximum(count, 1))[count > 0])
    return np.concatenate(out)
