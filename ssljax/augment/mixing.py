"""Mixup and CutMix of a batch: each image with the one before it, as torchvision's MixUp and CutMix pair them.

Images float (B, ..., H, W, C), normalised or not; labels float (B, K), one-hot or soft; lambda is the share of the image itself, drawn
from Beta(alpha, alpha). One lambda (and box) a batch as the papers have it, or with per_example=True one an example. Which image is the
partner depends on the batch, so mixing belongs after everything that is keyed by example. With labels=jnp.eye(B) the labels that come
out are the mixing weights, for objectives that have no classes.
"""

import jax
import jax.numpy as jnp

from ssljax.augment import geometry


def mixup(key, images, labels, *, alpha, per_example=False):
    """lambda x + (1 - lambda) x', labels likewise (Zhang et al. 2018, equation 2). -> images, labels; shapes as they came."""
    weight = share(key, alpha, len(images), per_example)
    return mix(images, weight), mix(labels, weight)


def cutmix(key, images, labels, *, alpha, per_example=False):
    """A box of the other image, of area 1 - lambda before it is cut at the border; labels by the area that remains
    (Yun et al. 2019, algorithm 1 and equation 2). -> images, labels; shapes as they came.
    """
    share_key, box_key = jax.random.split(key)
    height, width = images.shape[-3:-1]
    shares = share(share_key, alpha, len(images), per_example)
    draws = jax.random.uniform(box_key, (len(images) if per_example else 1, 2))
    boxes = [jnp.broadcast_to(side, (len(images),)) for side in cut_box(draws, shares, height, width)]
    kept = ~jax.vmap(lambda *box: geometry.inside(box, height, width))(*boxes)  # (B, H, W, 1)
    top, left, bottom, right = boxes
    weight = 1 - (bottom - top) * (right - left) / (height * width)
    between = (1,) * (images.ndim - 4)
    kept = kept.reshape(len(images), *between, height, width, 1)
    return jnp.where(kept, images, jnp.roll(images, 1, axis=0)), mix(labels, weight)


def mixup_or_cutmix(key, images, labels, *, mixup_alpha=0.8, cutmix_alpha=1.0, switch=0.5, per_example=False):
    """CutMix with probability `switch`, else mixup: the regime of DeiT (Touvron et al. 2021, table 9), once a batch."""
    switch_key, key = jax.random.split(key)
    return jax.lax.cond(
        jax.random.uniform(switch_key) < switch,
        lambda: cutmix(key, images, labels, alpha=cutmix_alpha, per_example=per_example),
        lambda: mixup(key, images, labels, alpha=mixup_alpha, per_example=per_example),
    )


def mixed(key, images, labels, *, mixup_alpha, cutmix_alpha):
    """By whichever alpha is above 0, by either in turn where both are. -> images, labels; shapes as they came."""
    if mixup_alpha and cutmix_alpha:
        return mixup_or_cutmix(key, images, labels, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)
    return mixup(key, images, labels, alpha=mixup_alpha) if mixup_alpha else cutmix(key, images, labels, alpha=cutmix_alpha)


def share(key, alpha, batch, per_example):
    """lambda from Beta(alpha, alpha), float32 (batch,); the same for all unless per_example."""
    return jnp.broadcast_to(jax.random.beta(key, alpha, alpha, (batch if per_example else 1,)), (batch,))


def cut_box(draws, shares, height, width):
    """CutMix's box: centre uniform over the pixels, sides sqrt(1 - lambda) of the image's, halves in whole pixels, cut at the border.

    draws: (n, 2) in [0, 1). shares: lambda, (n,) or to be broadcast. -> top, left, bottom, right, int32.
    """
    half = 0.5 * jnp.sqrt(1 - shares)
    row, column = jnp.floor(draws[:, 0] * height), jnp.floor(draws[:, 1] * width)
    down, across = jnp.floor(half * height), jnp.floor(half * width)
    sides = (row - down, height), (column - across, width), (row + down, height), (column + across, width)
    return [jnp.clip(side, 0, limit).astype(jnp.int32) for side, limit in sides]


def mix(x, weight):
    """weight x + (1 - weight) x', x' the row before: x (B, ...), weight (B,) -> (B, ...) of x's dtype, float32 of whole numbers."""
    weight = weight.reshape(-1, *(1,) * (x.ndim - 1))
    mixed = weight * x + (1 - weight) * jnp.roll(x, 1, axis=0)
    return mixed.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else mixed
