"""Do a ViT's attention maps find the object? Their greatest 60 % against its mask (Caron et al. 2021, DINO, section 4.2.2)."""

import numpy as np

from ssljax.evals import Context, seen_of, truth

NEEDS = "a ViT with a class token; pictures with masks of objects (config.evals.masks), whose class 0 is the object"
MASS = 0.6  # of a head's attention that is kept


def run(context: Context) -> dict:
    """{"attention_jaccard": intersection over union of the best head's kept attention and the object, of each test picture}."""
    test = truth(context, "masks", "test")
    objects = test["mask"] == 0
    there = objects.any((1, 2))
    attention = seen_of(context, test["image"][there], "attention", "the encoder has no class token that attends to patches")
    return {"attention_jaccard": jaccard(attention, objects[there])}


def jaccard(attention, objects, mass=MASS) -> np.ndarray:
    """attention (N, heads, h, w) over patches, objects bool (N, S, S) -> (N,), each picture's best head, patches enlarged."""
    n, heads, h, w = attention.shape
    flat = attention.reshape(n, heads, -1)
    flat = flat / np.maximum(flat.sum(-1, keepdims=True), 1e-12)
    order = np.argsort(-flat, axis=-1)
    before = np.cumsum(np.take_along_axis(flat, order, -1), -1) - np.take_along_axis(flat, order, -1)
    kept = np.zeros(flat.shape, bool)
    np.put_along_axis(kept, order, before < mass, -1)  # the fewest that have this mass
    side = objects.shape[-1]
    rows, columns = (((np.arange(side) + 0.5) * k / side).astype(int) for k in (h, w))
    large = kept.reshape(n, heads, h, w)[:, :, rows[:, None], columns]  # (N, heads, S, S)
    both = (large & objects[:, None]).sum((2, 3))
    return (both / np.maximum((large | objects[:, None]).sum((2, 3)), 1)).max(1)
