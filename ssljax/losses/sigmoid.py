"""Sigmoid losses over all pairs of a batch."""

import jax
import jax.numpy as jnp

from ssljax.losses.contrastive import check_impl, similarities


def siglip(x, y, logit_scale, bias, *, impl="auto"):
    """Pairwise sigmoid loss of image-text pairs (SigLIP, Zhai et al. 2023, Algorithm 1).

    logits = logit_scale * x @ y.T + bias                        # (B, B)
    loss = -sum_ij log sigmoid(l_ij * logits_ij) / B,  l = +1 on the diagonal, -1 elsewhere

    The sum over pairs is divided by B, not by B*B. x, y: (B, D), normalised by the caller, row i of one belongs to
    row i of the other. logit_scale: the multiplier itself, not its logarithm. -> float32 scalar. Raises UserError
    for an unknown `impl`.
    """
    check_impl(impl)
    logits = logit_scale * similarities(x, y) + bias
    signs = 2.0 * jnp.eye(x.shape[0], dtype=jnp.float32) - 1.0
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(signs * logits), axis=1))
