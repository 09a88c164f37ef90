"""How much of a linear probe is left when pictures are corrupted: ImageNet-C's fifteen corruptions at five severities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.augment import corruptions
from ssljax.evals import Context, NotApplicable, linear, need

NEEDS = "pictures and labels of the test set, features and labels of the train set"
PICTURES = 128  # of the test set; each is corrupted in 75 ways
# Top-1 errors of AlexNet, by which the published mean corruption error is divided (Hendrycks and Dietterich 2019, table 1's caption).
ALEXNET = {
    "gaussian_noise": 0.886, "shot_noise": 0.894, "impulse_noise": 0.923, "defocus_blur": 0.820, "glass_blur": 0.826,
    "motion_blur": 0.786, "zoom_blur": 0.798, "snow": 0.867, "frost": 0.827, "fog": 0.819, "brightness": 0.565, "contrast": 0.853,
    "elastic_transform": 0.646, "pixelate": 0.718, "jpeg_compression": 0.607,
}  # fmt: skip


def run(context: Context) -> dict:
    """{"clean_top1", "corrupted_top1": mean over severities and corruptions of whether each test picture is still right,
    "corrupted_<name>_top1", "corrupted_mce": mean corruption error relative to AlexNet's on ImageNet, of use for that set alone}."""
    need(context, train=("features", "label"), test=("image", "label"))
    if context.look is None:
        raise NotApplicable("the method has no encoder of pictures")
    pick = np.linspace(0, len(context.test["image"]) - 1, min(PICTURES, len(context.test["image"]))).astype(int)
    images, labels = context.test["image"][pick], np.asarray(context.test["label"])[pick]
    probe, _ = linear.of(context)
    right = lambda x: linear.right(probe, context.look(x)["features"], labels)  # noqa: E731
    each = {}
    for number, name in enumerate(corruptions.CORRUPTIONS):
        each[name] = np.stack([right(corrupted(name, images, severity, [context.seed, number, severity])) for severity in range(1, 6)])
    out = {"clean_top1": right(images), "corrupted_top1": np.stack(list(each.values())).mean((0, 1))}
    out |= {f"corrupted_{name}_top1": float(found.mean()) for name, found in each.items()}
    return out | {"corrupted_mce": mean_corruption_error({name: 1 - found.mean(1) for name, found in each.items()})}


def corrupted(name, images, severity, seed) -> np.ndarray:
    """uint8 (N, H, W, 3) -> the same, corrupted. seed: ints."""
    key = functools.reduce(jax.random.fold_in, seed, jax.random.PRNGKey(0))
    out = _corrupted(key, jnp.asarray(images, jnp.float32) / 255.0, name, severity)
    return np.asarray(jnp.round(out * 255.0).astype(jnp.uint8))


_corrupted = jax.jit(lambda key, x, name, severity: corruptions.apply(name, key, x, severity), static_argnums=(2, 3))


def mean_corruption_error(errors, reference=ALEXNET) -> float:
    """Mean over corruptions of the errors summed over severities, over a reference's (equation 1). errors: {name: (5,)};
    reference: {name: mean error over the severities}."""
    return float(np.mean([np.mean(error) / reference[name] for name, error in errors.items()]))


def effective_robustness(clean, shifted, baseline_clean, baseline_shifted) -> float:
    """Accuracy under shift beyond what baselines of this clean accuracy have: shifted - beta(clean), beta a line fitted to the baselines'
    accuracies on the logit scale (Taori et al. 2020, section 2). Accuracies in (0, 1); baselines: (N,), N at least 2."""
    logit = lambda p: np.log(np.clip(p, 1e-6, 1 - 1e-6) / (1 - np.clip(p, 1e-6, 1 - 1e-6)))  # noqa: E731
    slope, offset = np.polyfit(logit(np.asarray(baseline_clean)), logit(np.asarray(baseline_shifted)), 1)
    return float(shifted - 1 / (1 + np.exp(-(slope * logit(clean) + offset))))
