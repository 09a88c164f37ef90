"""The right class, or the right token, among many."""

import jax
import jax.numpy as jnp


def cross_entropy(logits, labels, *, mask=None, smoothing=0.0):
    """-mean log softmax(logits)[label]; with smoothing the label is mixed with so much of a uniform distribution.

    logits: (..., K). labels: int (...). mask: (...), 1 or True where an example counts (default: all), the mean over those of the
    batch, 0 where there are none. -> float32 scalar.
    """
    logits = logits.astype(jnp.float32)
    at = jnp.arange(logits.shape[-1]) == labels[..., None]
    # A sum, where a gather would have to know which device holds a column of a large vocabulary.
    right = jnp.sum(jnp.where(at, logits, 0.0), axis=-1)
    right = (1 - smoothing) * right + smoothing * logits.mean(-1) if smoothing else right
    return masked_mean(jax.nn.logsumexp(logits, axis=-1) - right, mask)


def soft_cross_entropy(logits, targets, *, smoothing=0.0):
    """-sum_k target_k log softmax(logits)_k, the mean over the batch; for labels that are mixed (mixup, CutMix).

    logits, targets: (B, K), targets summing to 1; smoothing as in `cross_entropy`. -> float32 scalar."""
    targets = (1 - smoothing) * targets + smoothing / targets.shape[-1]
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1))


def masked_mean(values, mask=None):
    """Mean of values (...) where mask (...) is 1 or True, those of the whole batch alike (default: all); 0 where none is."""
    if mask is None:
        return jnp.mean(values)
    mask = mask.astype(jnp.float32)
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1)


def caption(logits, tokens, *, pad=0):
    """Cross entropy of the next token (CoCa, Yu et al. 2022, eq. 3), the mean over all tokens of the batch that are not padding.

    logits: (B, L, K), position t predicts tokens[:, t]: the caller shifts. tokens: int (B, L). pad: the token that fills up a text.
    -> float32 scalar.
    """
    return cross_entropy(logits, tokens, mask=tokens != pad)
