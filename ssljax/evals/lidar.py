"""How many directions of the features tell images apart, views of one image being alike (LiDAR)."""

import numpy as np

from ssljax.evals import Context, NotApplicable

NEEDS = "pictures of the test set, and views of them such as training makes (config.data.crop=device)"
PICTURES, VIEWS = 256, 10


def run(context: Context) -> dict[str, float]:
    """{"lidar"} of ten augmented views each of at most 256 test pictures."""
    if context.views is None or context.look is None:
        raise NotApplicable("views are cut on the host (config.data.crop), or there is no encoder of pictures")
    views = context.views(VIEWS)[:PICTURES]
    features = context.look(views.reshape(-1, *views.shape[2:]))["features"]
    return {"lidar": lidar(features.reshape(*views.shape[:2], -1))}


def lidar(features, *, delta: float = 1e-4, eps: float = 1e-8) -> float:
    """LiDAR, Thilak et al. 2023, section 3: exp(-sum_k p_k log p_k), p the eigenvalues of Sw^-1/2 Sb Sw^-1/2, + eps, in all 1.

    features: (images, views, D), Sb the unbiased covariance of the images' means, Sw that of the views around them + delta on the
    diagonal. Between 1 and min(D, images - 1). Raises ValueError for fewer than two images or views.
    """
    x = np.asarray(features, np.float64)
    images, views, dim = x.shape
    if images < 2 or views < 2:
        raise ValueError(f"lidar needs at least 2 images and 2 views of each, got {images} and {views}")
    means = x.mean(1)
    within = (x - means[:, None]).reshape(-1, dim)
    sw = within.T @ within / (images * (views - 1)) + delta * np.eye(dim)
    values, vectors = np.linalg.eigh(sw)
    # Eigenvalues of Sw^-1/2 Sb Sw^-1/2 are squared singular values of the whitened means.
    white = (means - means.mean(0)) @ vectors / np.sqrt(np.maximum(values, eps))
    p = np.linalg.eigvalsh(white.T @ white / (images - 1)).clip(0) + eps
    p = p / p.sum()
    return float(np.exp(-np.sum(p * np.log(p))))
