"""The two towers of an image-text method and the vectors that they give; an encoder and the decoder that writes of it."""

import math

import jax
import jax.numpy as jnp

from ssljax import decode, losses, models


def init(image, text, rng, images, ids):
    """image, text: modules. -> {"encoder": params, "text": params}, {"encoder": batch statistics, "text": ...}."""
    r = jax.random.split(rng)
    encoder, own = models.init(image, r[0], images, train=False)
    tower, other = models.init(text, r[1], ids, train=False)
    return {"encoder": encoder, "text": tower}, {"encoder": own, "text": other}


def init_of_tokens(image, text, rng, images, ids):
    """`init`, and of each tower the width of its tokens: {"image": of a patch, "text": of a word}."""
    params, stats = init(image, text, rng, images, ids)
    h, _ = jax.eval_shape(lambda: models.apply(image, params["encoder"], stats["encoder"], images, train=False))
    return params, stats, {"image": h["patches"].shape[-1], "text": text.width}


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
    h, own = models.apply(image, params["encoder"], stats["encoder"], images, train=True, rng=r[0], tokens=False, **more)
    t, other = models.apply(text, params["text"], stats["text"], batch["text"], train=True, rng=r[1], tokens=False)
    return {"image": unit(h), "text": unit(t)}, {"encoder": own, "text": other}


def embed(image, text, params, stats, batch):
    """For evaluators: "features" of the images, and "image_embedding", "text_embedding" of what the batch has."""
    out = {}
    if "image" in batch:
        h, _ = models.apply(image, params["encoder"], stats["encoder"], batch["image"], train=False, tokens=False)
        out |= {"features": h["pooled"], "image_embedding": unit(h)}
    if "text" in batch:
        h, _ = models.apply(text, params["text"], stats["text"], batch["text"], train=False, tokens=False)
        out["text_embedding"] = unit(h)
    return out


# ------------------------------------------------------------------------------------ an encoder, and a decoder that looks at its patches
def init_captioner(image, decoder, rng, images, ids):
    """image, decoder: modules, a text tower with cross-attention the latter. -> {"encoder": params, "text": params}, statistics."""
    r = jax.random.split(rng)
    encoder, stats = models.init(image, r[0], images, train=False)
    h, _ = models.apply(image, encoder, stats, images, train=False)
    text, _ = models.init(decoder, r[1], ids, train=False, memory=h["patches"])
    return {"encoder": encoder, "text": text}, {"encoder": stats, "text": {}}


def next_words(decoder, params, ids, memory, *, train, valid=None, rng=None):
    """Logits (B, T, V) of the token after each of ids int (B, T), by the patches `memory`; the output layer is the token embedding
    transposed. valid: which token sees which, (B, T, T); None: as the decoder is."""
    t, _ = models.apply(decoder, params, {}, ids, train=train, rng=rng, valid=valid, memory=memory)
    return t["tokens"].astype(jnp.float32) @ params["token_embed"]["embedding"].T


def writer(image, decoder, params, words, stats, images):
    """A `decode.Writer` of the captions of normalised images (B, H, W, 3). words: the decoder's params; the last id starts a text."""
    memory = models.apply(image, params["encoder"], stats["encoder"], images, train=False)[0]["patches"]
    return decode.tower(decoder, words, memory, decoder.vocab_size - 1)
