"""Linear depth of frozen patch tokens, as DINOv2 judges (Oquab et al. 2023, section 7.4): the mean of bins of depth under weights."""

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.evals import Context, patches_of, probes, truth
from ssljax.evals.segmentation import logits

NEEDS = "an encoder with a map of patches; pictures with depth (config.evals.depth)"
BINS, STEPS, BATCH, PEAK = 64, 300, 64, 1e-2


def run(context: Context) -> dict:
    """{"depth_rmse": root mean square error of each test picture, metres, "depth_delta1": share of its pixels within a factor 1.25}."""
    train, test = truth(context, "depth", "train"), truth(context, "depth", "test")
    predicted = predict(patches_of(context, train["image"]), train["depth"], patches_of(context, test["image"]), seed=context.seed)
    return scores(test["depth"], predicted)


def predict(patches, depth, test_patches, *, seed=0, steps=STEPS) -> np.ndarray:
    """patches (N, h, w, D), depth float (N, S, S), 0 where unknown -> float32 (M, S, S) of test_patches (M, h, w, D)."""
    side, known = depth.shape[-1], depth[depth > 0]
    centres = jnp.linspace(known.min(), known.max(), BINS)
    patches, test_patches = probes.standardised(jnp.asarray(patches), jnp.asarray(test_patches))
    params = {"kernel": jnp.zeros((patches.shape[-1], BINS)), "bias": jnp.ones(BINS)}

    def depths(params, x):
        weights = jax.nn.relu(logits(params, x, side)) + 0.1  # AdaBins' linear normalisation (Bhat et al. 2021)
        return weights @ centres / weights.sum(-1)

    def loss(params, rows):
        """The scale-invariant logarithmic loss (Eigen et al. 2014), as its square root."""
        x, y = rows
        seen = y > 0
        error = jnp.where(seen, jnp.log(depths(params, x)) - jnp.log(jnp.where(seen, y, 1.0)), 0.0)
        count = jnp.maximum(seen.sum(), 1)
        mean, square = error.sum() / count, jnp.square(error).sum() / count
        return jnp.sqrt(jnp.maximum(square - 0.85 * mean**2, 1e-12))

    params = probes.fit(loss, params, (patches, depth), optimizer=probes.adamw(PEAK, steps), steps=steps, batch=BATCH, seed=seed)
    return probes.in_parts(jax.jit(lambda x: depths(params, x)), test_patches)


def scores(depth, predicted) -> dict:
    """Of each picture, over the pixels of known depth (above 0)."""
    seen = depth > 0
    count = np.maximum(seen.sum((1, 2)), 1)
    error = np.where(seen, np.square(depth - predicted), 0.0).sum((1, 2)) / count
    ratio = np.maximum(predicted, 1e-6) / np.where(seen, depth, 1.0)
    near = (seen & (np.maximum(ratio, 1 / ratio) < 1.25)).sum((1, 2)) / count
    return {"depth_rmse": np.sqrt(error), "depth_delta1": near}
