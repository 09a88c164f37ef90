"""Alignment and uniformity of features (Wang and Isola 2020): examples of a class lie together, all examples lie everywhere."""

import numpy as np

from ssljax.evals import Context, need
from ssljax.evals.features import unit_norm

NEEDS = "features of the test set, and its labels for the alignment"
MOST = 4096  # examples


def run(context: Context) -> dict[str, float]:
    """{"uniformity": log mean exp(-2 |x - y|^2) over pairs; "alignment": mean |x - y|^2 over pairs of one class}, of unit features."""
    need(context, test=("features",))
    features = np.asarray(unit_norm(context.test["features"][:MOST]), np.float64)
    out = {"uniformity": uniformity(features)}
    if "label" in context.test:
        out["alignment"] = alignment(features, np.asarray(context.test["label"])[:MOST])
    return out


def uniformity(x, t=2.0) -> float:
    """log of the mean of exp(-t |x_i - x_j|^2) over pairs i < j (equation 4). x: (N, D) of unit norm. At most 0; lower is more even."""
    squared = np.clip(2.0 - 2.0 * (x @ x.T), 0.0, None)[np.triu_indices(len(x), 1)]
    return float(np.log(np.exp(-t * squared).mean()))


def alignment(x, labels) -> float:
    """Mean of |x_i - x_j|^2 over pairs i < j of one class (equation 3, a class's examples for an image's views). NaN without a pair."""
    total = pairs = 0.0
    for label in np.unique(labels):
        own = x[labels == label]
        n = len(own)  # sum over pairs of |x - y|^2 = n sum |x|^2 - |sum x|^2
        total += n * np.square(own).sum() - np.square(own.sum(0)).sum()
        pairs += n * (n - 1) / 2
    return float(total / pairs) if pairs else float("nan")
