"""Softmax contrastive losses.

No function here normalises its inputs: the caller does (`normalise`) where similarities should be cosines. Arrays
are global and of any float dtype; logits and losses are float32, and the loss is a mean. Gradients flow into every
array given: a method that wants constant keys or targets stops them itself.

`impl="dense"` holds the whole matrix of logits and is the definition that reads like the paper; "auto" picks the
best there is.
"""

import jax
import jax.numpy as jnp

from ssljax.errors import UserError

IMPLEMENTATIONS = ("auto", "dense")


def check_impl(impl):
    """Raises UserError unless `impl` is one of IMPLEMENTATIONS."""
    if impl not in IMPLEMENTATIONS:
        raise UserError(f"impl={impl!r}: this loss has {' and '.join(map(repr, IMPLEMENTATIONS))} (auto means dense)")


def normalise(x, eps=1e-12):
    """x (..., D) -> x / max(|x|, eps), float32, unit L2 norm along the last axis; zero stays zero."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), eps**2))


def similarities(x, y):
    """x (M, D), y (N, D) -> dot products (M, N) float32: in full precision for float32, bfloat16 summed in float32."""
    if x.dtype == y.dtype == jnp.bfloat16:
        return jnp.matmul(x, y.T, preferred_element_type=jnp.float32)
    return jnp.matmul(x.astype(jnp.float32), y.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST)


def _at(mask, logits):
    """The one logit of each row where mask (M, N) is true: a sum that stays sharded by rows, where a gather would not."""
    return jnp.sum(jnp.where(mask, logits, 0.0), axis=1)


def clip_softmax(x, y, logit_scale, bias=0.0, *, impl="auto"):
    """Symmetric InfoNCE of image-text pairs (CLIP, Radford et al. 2021, Figure 3).

    logits = logit_scale * x @ y.T + bias                        # (B, B)
    loss = (CE(rows, arange(B)) + CE(columns, arange(B))) / 2

    x, y: (B, D), row i of one belongs to row i of the other. logit_scale: the multiplier itself, not its logarithm.
    bias: added to every logit; the softmax does not see it. -> float32 scalar. Raises UserError for an unknown `impl`.
    """
    check_impl(impl)
    logits = logit_scale * similarities(x, y) + bias  # (B, B)
    rows, columns = jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)
    return jnp.mean((rows + columns) / 2 - _at(jnp.eye(len(x), dtype=bool), logits))


def info_nce(q, k, *, temperature, queue=None, impl="auto"):
    """One-directional InfoNCE, queries against keys (MoCo, He et al. 2020, eq. 1; MoCo v3, Chen et al. 2021, Alg. 1).

    without a queue: loss_i = -log( e(q_i, k_i) / sum_j e(q_i, k_j) ),  e(a, b) = exp(a . b / temperature)
    with a queue:    loss_i = -log( e(q_i, k_i) / (e(q_i, k_i) + sum_n e(q_i, queue_n)) )

    q, k: (B, D). queue: (K, D), one negative a row. MoCo v3 multiplies this by 2 * temperature. -> float32 scalar.
    Raises UserError for an unknown `impl`.
    """
    check_impl(impl)
    if queue is None:
        logits = similarities(q, k) / temperature  # (B, B)
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - _at(jnp.eye(len(q), dtype=bool), logits))
    positives = jnp.sum(q.astype(jnp.float32) * k.astype(jnp.float32), axis=-1) / temperature  # (B,)
    negatives = jax.nn.logsumexp(similarities(q, queue) / temperature, axis=1)  # (B,)
    return jnp.mean(jax.nn.softplus(negatives - positives))


def nt_xent(z0, z1, *, temperature, impl="auto"):
    """Normalised temperature-scaled cross entropy (SimCLR, Chen et al. 2020, equation 1 and Algorithm 1).

    z = concat(z0, z1)
    loss_i = -log( e(z_i, z_i') / sum_{j != i} e(z_i, z_j) ), z_i' the other view; mean over all 2B anchors

    z0, z1: (B, D), normalised by the caller, row i of both from one image. -> float32 scalar.
    Raises UserError for an unknown `impl`.
    """
    check_impl(impl)
    batch = z0.shape[0]
    z = jnp.concatenate([z0, z1])  # (2B, D)
    logits = similarities(z, z) / temperature  # (2B, 2B)
    itself = jnp.eye(2 * batch, dtype=bool)
    positives = _at(jnp.roll(itself, batch, axis=1), logits)  # (2B,)
    others = jnp.where(itself, -jnp.inf, logits)
    return jnp.mean(jax.nn.logsumexp(others, axis=1) - positives)


def _by_label(z, labels, temperature, anchors=None):
    """-> logits (A, N), masks (A, N) of the positives and of all but oneself; the first A rows are the anchors."""
    anchors = z.shape[0] if anchors is None else anchors
    logits = similarities(z[:anchors], z) / temperature
    others = ~jnp.eye(anchors, z.shape[0], dtype=bool)
    return logits, (labels[:anchors, None] == labels[None, :]) & others, others


def _masked_logsumexp(logits, mask):
    """-> log sum exp over the mask of every row, and which rows have any; the others get 0 and a zero gradient."""
    some = mask.any(axis=1)
    # A row of nothing but -inf would have nan for a gradient.
    masked = jnp.where(mask | ~some[:, None], logits, -jnp.inf)
    return jnp.where(some, jax.nn.logsumexp(masked, axis=1), 0.0), some


def supcon(z, labels, *, temperature, anchors=None, impl="auto"):
    """Supervised contrastive loss, positives averaged outside the logarithm (Khosla et al. 2020, equation 2, L_out).

    loss_i = -mean over positives p of i of log( e(z_i, z_p) / sum_{a != i} e(z_i, z_a) )

    z: (N, D), views stacked along the rows. labels: int (N,); rows of one label are positives of each other.
    The mean runs over the anchors that have a positive. anchors: only the first so many rows are anchors, while all
    rows are contrasted (default: all). The paper's code multiplies this by temperature / 0.07. -> float32 scalar.
    Raises UserError for an unknown `impl`.
    """
    check_impl(impl)
    logits, positives, others = _by_label(z, labels, temperature, anchors)
    log_p = logits - _masked_logsumexp(logits, others)[0][:, None]  # (A, N)
    count = jnp.sum(positives, axis=1)  # (A,)
    losses = -jnp.sum(jnp.where(positives, log_p, 0.0), axis=1) / jnp.maximum(count, 1)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(count > 0), 1)


def multi_positive(z, labels, *, temperature, impl="auto"):
    """NT-Xent with several positives, summed inside the logarithm (Khosla et al. 2020, equation 3, L_in).

    loss_i = -log( sum_{p positive of i} e(z_i, z_p) / sum_{a != i} e(z_i, z_a) )

    z: (N, D). labels: int (N,). The mean runs over the anchors that have a positive. -> float32 scalar.
    Raises UserError for an unknown `impl`.
    """
    check_impl(impl)
    logits, positives, others = _by_label(z, labels, temperature)
    numerator, some = _masked_logsumexp(logits, positives)
    denominator, _ = _masked_logsumexp(logits, others)
    return jnp.sum(jnp.where(some, denominator - numerator, 0.0)) / jnp.maximum(jnp.sum(some), 1)


def pair_nt_xent(z, labels, *, temperature, impl="auto"):
    """NT-Xent over pairs named by labels: a pair's denominator leaves the anchor's other positives out.

    loss_ip = -log( e(z_i, z_p) / (e(z_i, z_p) + sum_{n of another label} e(z_i, z_n)) ), mean over ordered pairs (i, p)

    z: (N, D). labels: int (N,). -> float32 scalar, 0 where there is no pair. Raises UserError for an unknown `impl`.
    """
    check_impl(impl)
    logits, positives, others = _by_label(z, labels, temperature)
    negatives, some = _masked_logsumexp(logits, others & ~positives)
    losses = jnp.where(some[:, None], jax.nn.softplus(negatives[:, None] - logits), 0.0)
    return jnp.sum(jnp.where(positives, losses, 0.0)) / jnp.maximum(jnp.sum(positives), 1)


def enqueue(queue, pointer, keys, *, overflow="wrap"):
    """Write a batch of keys over the oldest rows of a queue (MoCo, He et al. 2020, Algorithm 1).

    queue: (K, D). pointer: int scalar, the next row to write. keys: (B, D), B <= K. -> queue, pointer (int32).
    Where B does not divide K, overflow="wrap" goes on at row 0; "drop" leaves the rest of the batch out and returns
    to row 0. Raises UserError for a batch larger than the queue and for another `overflow`.
    """
    size, batch = queue.shape[0], keys.shape[0]
    if batch > size:
        raise UserError(f"a batch of {batch} keys does not fit into a queue of {size} rows; make the queue longer")
    if overflow not in ("wrap", "drop"):
        raise UserError(f"overflow={overflow!r}: expected 'wrap' or 'drop'")
    rows, end = pointer + jnp.arange(batch, dtype=jnp.int32), pointer + batch
    if overflow == "wrap":
        rows, end = rows % size, end % size
    else:
        end = jnp.where(end >= size, 0, end)
    return queue.at[rows].set(keys.astype(queue.dtype), mode="drop"), jnp.asarray(end, jnp.int32)
