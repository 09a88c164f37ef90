"""Linear segmentation of frozen patch tokens, as DINOv2 judges (Oquab et al. 2023, section 7.4): one linear layer, logits enlarged."""

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import losses
from ssljax.evals import Context, patches_of, probes, truth

NEEDS = "an encoder with a map of patches; pictures with masks (config.evals.masks)"
NOWHERE = 255  # pixels of this value count nowhere
STEPS, BATCH, PEAK = 400, 64, 1e-2


def run(context: Context) -> dict[str, float]:
    """{"segmentation_miou", "segmentation_accuracy": share of pixels} of the test pictures."""
    train, test = truth(context, "masks", "train"), truth(context, "masks", "test")
    predicted = predict(patches_of(context, train["image"]), train["mask"], patches_of(context, test["image"]), seed=context.seed)
    miou, accuracy = scores(confusion(test["mask"], predicted))
    return {"segmentation_miou": miou, "segmentation_accuracy": accuracy}


def predict(patches, mask, test_patches, *, seed=0, steps=STEPS) -> np.ndarray:
    """patches (N, h, w, D), mask int (N, S, S) -> classes int (M, S, S) of test_patches (M, h, w, D)."""
    classes, side = int(mask[mask != NOWHERE].max()) + 1, mask.shape[-1]
    patches, test_patches = probes.standardised(jnp.asarray(patches), jnp.asarray(test_patches))
    params = {"kernel": jnp.zeros((patches.shape[-1], classes)), "bias": jnp.zeros(classes)}

    def loss(params, rows):
        x, y = rows
        return losses.cross_entropy(logits(params, x, side), y, mask=y != NOWHERE)

    params = probes.fit(loss, params, (patches, mask), optimizer=probes.adamw(PEAK, steps), steps=steps, batch=BATCH, seed=seed)
    return probes.in_parts(jax.jit(lambda x: logits(params, x, side).argmax(-1)), test_patches)


def logits(params, patches, side):
    """The linear layer on patches (N, h, w, D), bilinear to (N, side, side, K)."""
    out = patches @ params["kernel"] + params["bias"]
    return jax.image.resize(out, (len(out), side, side, out.shape[-1]), "bilinear")


def confusion(mask, predicted) -> np.ndarray:
    """Pixels by true class (rows) and predicted (columns), those of value 255 left out."""
    from sklearn.metrics import confusion_matrix

    keep = mask != NOWHERE
    return confusion_matrix(mask[keep], predicted[keep], labels=np.arange(max(mask[keep].max(), predicted[keep].max()) + 1))


def scores(table) -> tuple[float, float]:
    """Mean over the classes that occur, in truth or prediction, of intersection over union; share of pixels that are right."""
    union = table.sum(0) + table.sum(1) - np.diag(table)
    return float((np.diag(table)[union > 0] / union[union > 0]).mean()), float(np.trace(table) / table.sum())
