"""Sigmoid losses over all pairs of a batch."""

import jax
import jax.numpy as jnp

from ssljax.losses.contrastive import similarities
from ssljax.losses.pairs import check_impl, pair_sum


def siglip(x, y, logit_scale, bias, *, labels=None, targets=None, impl="auto"):
    """Pairwise sigmoid loss of image-text pairs (SigLIP, Zhai et al. 2023, Algorithm 1).

    logits = logit_scale * x @ y.T + bias                        # (B, B)
    loss = -sum_ij log sigmoid(l_ij * logits_ij) / B,  l = +1 on the diagonal, -1 elsewhere

    The sum over pairs is divided by B, not by B*B. x, y: (B, D), normalised by the caller, row i of one belongs to
    row i of the other. logit_scale: the multiplier itself, not its logarithm. Many positives: labels, int (B,), make l = +1
    wherever they are equal. Soft positives: targets, float (B, K), e.g. distributions over classes, make a pair positive with
    probability t_ij = targets_i . targets_j: softplus(logits) - t * logits; they are constant. impl: as in `contrastive`; the gradient
    is formed together with the loss. -> float32 scalar. Raises UserError for an unknown `impl`, and a batch that the devices do not divide.
    """
    check_impl(impl)
    if impl != "dense":
        kind = {} if targets is None else {"targets": (targets, targets)}
        positives = "same" if labels is None else "matches"
        return pair_sum(x, y, logit_scale, bias, positives=positives, labels=labels, **kind, impl=impl) / len(x)
    logits = logit_scale * similarities(x, y) + bias
    if targets is not None:
        t = jax.lax.stop_gradient(similarities(targets, targets))
        return jnp.sum(jax.nn.softplus(logits) - t * logits) / len(x)
    positive = jnp.eye(len(x), dtype=bool) if labels is None else labels[:, None] == labels[None, :]
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(jnp.where(positive, logits, -logits)), axis=1))
