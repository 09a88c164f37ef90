"""Masks carried from the first frame of a video through the others by the likeness of patches (Jabri et al. 2020; DINO's protocol), judged
as DAVIS does (Perazzi et al. 2016): J, intersection over union of regions, and F, of boundaries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.evals import Context, patches_of, truth

NEEDS = "an encoder with a map of patches; videos with masks of objects (config.evals.video), 0 the background"
EARLIER, NEAREST, REACH, TEMPERATURE = 7, 5, 12, 0.1  # frames beside the first, patches that vote, patches away, of the softmax


def run(context: Context) -> dict:
    """{"video_j", "video_f", "video_jf": their mean, of each test video}."""
    test = truth(context, "video", "test")
    count, frames = test["video"].shape[:2]
    patches = patches_of(context, test["video"].reshape(-1, *test["video"].shape[2:]))
    patches = patches.reshape(count, frames, *patches.shape[1:])
    j, f = np.array([score(mask, carry(x, mask[0])) for x, mask in zip(patches, test["mask"], strict=True)]).T
    return {"video_j": j, "video_f": f, "video_jf": (j + f) / 2}


def carry(patches, first) -> np.ndarray:
    """patches (T, h, w, D), first: mask int (S, S) of the first frame -> masks int (T, S, S)."""
    frames, h, w, _ = patches.shape
    side, objects = first.shape[-1], int(first.max()) + 1
    x = jnp.asarray(patches, jnp.float32)
    x = (x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)).reshape(frames, h * w, -1)
    place = np.stack(np.divmod(np.arange(h * w), w), -1)
    near = jnp.asarray((np.abs(place[:, None] - place[None]) <= REACH).all(-1))
    start = jax.image.resize(jnp.eye(objects)[first], (h, w, objects), "linear", antialias=True).reshape(h * w, objects)
    soft = [start]
    for t in range(1, frames):
        told = [0, *range(max(1, t - EARLIER), t)]
        told = told + [0] * (EARLIER + 1 - len(told))  # one shape for all frames: the first again, which is switched off
        real = jnp.arange(EARLIER + 1) < len(set(told))
        soft.append(_vote(x[t], x[np.array(told)], jnp.stack([soft[i] for i in told]), near, real))
    large = jax.image.resize(jnp.stack(soft).reshape(frames, h, w, objects), (frames, side, side, objects), "linear")
    return np.asarray(large.argmax(-1))


@functools.partial(jax.jit)
def _vote(query, keys, masks, near, real):
    """query (P, D), keys (F, P, D), masks (F, P, K), near bool (P, P), real bool (F,) -> (P, K)."""
    like = jnp.einsum("pd,fqd->pfq", query, keys, precision="highest")
    like = jnp.where(near[:, None] & real[:, None], like, -jnp.inf).reshape(len(query), -1)
    best, at = jax.lax.top_k(like, min(NEAREST, like.shape[1]))
    weights = jax.nn.softmax(best / TEMPERATURE, axis=-1)
    return jnp.einsum("pk,pkc->pc", weights, masks.reshape(-1, masks.shape[-1])[at])


def score(mask, predicted) -> tuple[float, float]:
    """Mean J and F over the objects of mask int (T, S, S) and the frames but the first, which is given, and the last, as DAVIS has it."""
    objects = [k for k in np.unique(mask[0]) if k]
    frames = range(1, max(len(mask) - 1, 2))
    pairs = [(mask[t] == k, predicted[t] == k) for t in frames for k in objects]
    return tuple(float(np.mean([measure(*pair) for pair in pairs])) for measure in (region, boundary))


def region(truth, predicted) -> float:
    """Intersection over union of two bool (S, S); 1 where both are empty."""
    union = (truth | predicted).sum()
    return float((truth & predicted).sum() / union) if union else 1.0


def boundary(truth, predicted, tolerance=0.008) -> float:
    """F of precision and recall of the boundaries, which match within `tolerance` of the picture's diagonal (at least a pixel)."""
    from skimage.morphology import dilation, disk

    reach = disk(int(np.ceil(tolerance * np.linalg.norm(truth.shape))))
    a, b = _edge(truth), _edge(predicted)
    precision = (b & dilation(a, reach)).sum() / b.sum() if b.any() else float(not a.any())
    recall = (a & dilation(b, reach)).sum() / a.sum() if a.any() else float(not b.any())
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _edge(mask):
    """Pixels whose right, lower or lower right neighbour is on the other side (DAVIS's seg2bmap)."""
    right, down, both = np.zeros((3, *mask.shape), bool)
    right[:, :-1], down[:-1], both[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    right[:, -1], down[-1], both[-1, :-1], both[:-1, -1] = mask[:, -1], mask[-1], mask[-1, 1:], mask[1:, -1]
    both[-1, -1] = mask[-1, -1]
    return (mask ^ right) | (mask ^ down) | (mask ^ both)
