"""Is the representation collapsed? Judged without labels: effective rank (RankMe) and the spread of normalised
features.
"""

import jax
import jax.numpy as jnp

from ssljax.evals import Context, need
from ssljax.evals.features import unit_norm

NEEDS = "features of the test set"


def run(context: Context) -> dict[str, float]:
    """{"rankme", "feature_std"} of the test features."""
    need(context, test=("features",))
    features = context.test["features"]
    return {"rankme": rankme(features), "feature_std": feature_std(features)}


def rankme(features, eps: float = 1e-7) -> float:
    """RankMe, Garrido et al. 2023, equation 3: exp(-sum_k p_k log p_k), p_k = s_k / sum_j s_j + eps, s the singular
    values of features (N, D).

    Features are not centred. Between 1 (all rows on one line) and min(N, D).
    """
    features = jnp.asarray(features, jnp.float32)
    if features.shape[0] > 2 * features.shape[1]:
        features = jnp.linalg.qr(features, mode="r")  # (D, D), the same singular values: a cheaper decomposition
    s = jnp.linalg.svd(features, compute_uv=False)
    p = s / jnp.maximum(s.sum(), jnp.finfo(s.dtype).tiny) + eps
    return float(jnp.exp(jax.scipy.special.entr(p).sum()))


def feature_std(features) -> float:
    """Standard deviation over rows of the L2-normalised features (N, D), mean over dimensions, times sqrt(D).

    About 1 for directions spread evenly over the sphere, 0 when all features point one way (SimSiam, Chen and He 2021,
    section 4.1).
    """
    unit = unit_norm(features)
    return float(unit.std(axis=0).mean() * unit.shape[1] ** 0.5)
