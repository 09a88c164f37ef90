"""The two towers of an image-text method, and the vectors that they give."""

import math

import jax
import jax.numpy as jnp

from ssljax import losses, models


def init(image, text, rng, images, ids):
    """image, text: modules. -> {"encoder": params, "text": params}, {"encoder": batch statistics, "text": ...}."""
    r = jax.random.split(rng)
    encoder, own = models.init(image, r[0], images, train=False)
    tower, other = models.init(text, r[1], ids, train=False)
    return {"encoder": encoder, "text": tower}, {"encoder": own, "text": other}


def start_scale(temperature):
    """{"logit_scale": log(1 / temperature)}, learned: CLIP's parametrisation (Radford et al. 2021, section 2.5)."""
    return {"logit_scale": jnp.float32(math.log(1 / temperature))}


def scale(params, most):
    """The logit scale, held at or below `most`."""
    return jnp.exp(jnp.minimum(params["logit_scale"], math.log(most)))


def unit(outputs):
    """A tower's vector for comparing, float32, unit norm: its "embedding" where it has a linear layer for it (out > 0), else "pooled"."""
    return losses.normalise(outputs.get("embedding", outputs["pooled"]).astype("float32"))


def image_patches(module, images):
    """Patches of an image (B, H, W, 3) in the image tower's grid."""
    return (images.shape[1] // module.patch_size) * (images.shape[2] // module.patch_size)


def encode(image, text, params, stats, batch, rng, *, mask_ratio=0.0):
    """For training. batch: "views" (B, 1, H, W, 3), "text" int (B, T). -> {"image": (B, E), "text": (B, E)} of unit norm, statistics.
    mask_ratio: share of the image's patches that is left out, at random (FLIP, Li et al. 2022; a ViT)."""
    r = jax.random.split(rng, 3)
    images, more = batch["views"][:, 0], {}
    if mask_ratio:
        noise = jax.random.uniform(r[2], (images.shape[0], image_patches(image, images)))
        more["keep"] = losses.random_masking(noise, mask_ratio)[0]
    h, own = models.apply(image, params["encoder"], stats["encoder"], images, train=True, rng=r[0], **more)
    t, other = models.apply(text, params["text"], stats["text"], batch["text"], train=True, rng=r[1])
    return {"image": unit(h), "text": unit(t)}, {"encoder": own, "text": other}


def embed(image, text, params, stats, batch):
    """For evaluators: "features" of the images, and "image_embedding", "text_embedding" of what the batch has."""
    out = {}
    if "image" in batch:
        h, _ = models.apply(image, params["encoder"], stats["encoder"], batch["image"], train=False)
        out |= {"features": h["pooled"], "image_embedding": unit(h)}
    if "text" in batch:
        h, _ = models.apply(text, params["text"], stats["text"], batch["text"], train=False)
        out["text_embedding"] = unit(h)
    return out
