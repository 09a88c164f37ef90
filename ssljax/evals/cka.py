"""Do two representations of the same examples agree up to a rotation and a scale (CKA)?"""

import numpy as np

from ssljax.evals import Context, need, seen_of

NEEDS = "pictures of the test set, and an encoder of blocks that tells what each of them gives"
PICTURES = 512


def run(context: Context) -> dict[str, float]:
    """{"cka_neighbours": mean linear CKA of a block and the next, "cka_ends": of the first and the last} on test pictures."""
    need(context, test=("image",))
    images = context.test["image"][:PICTURES]
    layers = np.moveaxis(seen_of(context, images, "layers", "the encoder does not tell its layers apart"), 1, 0)
    pairs = [linear_cka(a, b) for a, b in zip(layers, layers[1:], strict=False)]
    return {"cka_neighbours": float(np.mean(pairs)), "cka_ends": linear_cka(layers[0], layers[-1])}


def linear_cka(x, y) -> float:
    """Linear centred kernel alignment, Kornblith et al. 2019, section 3: |x.T y|_F^2 / (|x.T x|_F |y.T y|_F), columns centred.

    x: (N, D), y: (N, E), row i of both from one example. The plain (biased) estimate. 1: the same; nan where either is constant.
    """
    x, y = (np.asarray(a, np.float64) for a in (x, y))
    x, y = x - x.mean(0), y - y.mean(0)
    if len(x) < max(x.shape[1], y.shape[1]):  # the same number from the smaller matrices
        x, y = x @ x.T, y @ y.T
        return float(np.sum(x * y) / (np.linalg.norm(x) * np.linalg.norm(y)))
    return float(np.sum(np.square(x.T @ y)) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))
