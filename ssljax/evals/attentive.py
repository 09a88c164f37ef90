"""Attentive probe: one learned query looks at the frozen patch tokens, a linear layer follows (Bardes et al. 2024, V-JEPA; AIM)."""

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import losses, models
from ssljax.evals import Context, need, patches_of, probes
from ssljax.models import vit

NEEDS = "an encoder with a map of patches; pictures and labels of the train and the test set"
STEPS, BATCH, PEAK = 400, 128, 1e-3


def run(context: Context) -> dict:
    """{"attentive_top1": right or wrong of each test example whose picture is at hand}."""
    need(context, train=("image", "label"), test=("image", "label"))
    patches = {k: patches_of(context, getattr(context, k)["image"]) for k in ("train", "test")}
    labels = {k: np.asarray(getattr(context, k)["label"])[: len(patches[k])] for k in patches}
    predicted = predict(patches["train"], labels["train"], patches["test"], classes=context.classes, seed=context.seed)
    return {"attentive_top1": predicted == labels["test"]}


def predict(patches, labels, test_patches, *, classes, seed=0, steps=STEPS) -> np.ndarray:
    """patches (N, h, w, D), labels int (N,) -> classes int (M,) of test_patches (M, h, w, D)."""
    width = patches.shape[-1]
    flat = lambda x: jnp.asarray(x).reshape(len(x), -1, width)  # noqa: E731
    patches, test_patches = probes.standardised(flat(patches), flat(test_patches))
    heads = next(h for h in (16, 12, 8, 6, 4, 3, 2, 1) if width % h == 0 and width // h >= min(width, 16))
    pool = vit.AttentionPool(heads, 4 * width)
    params, _ = models.init(pool, jax.random.PRNGKey(seed), patches[:1])
    params = {"pool": params, "kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}

    def logits(params, x):
        return pool.apply({"params": params["pool"]}, x) @ params["kernel"] + params["bias"]

    def loss(params, rows):
        return losses.cross_entropy(logits(params, rows[0]), rows[1])

    optimizer = probes.adamw(PEAK, steps, weight_decay=0.05)
    params = probes.fit(loss, params, (patches, labels), optimizer=optimizer, steps=steps, batch=BATCH, seed=seed)
    return probes.in_parts(jax.jit(lambda x: logits(params, x).argmax(-1)), test_patches)
