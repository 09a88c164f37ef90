"""Metric learning: margins and neighbourhoods of pairs and triplets, given or named by labels.

No function normalises its inputs: the caller does where distances should be of directions. Losses named by labels look at all pairs of
the batch, (B, B) distances in float32.
"""

import jax
import jax.numpy as jnp

from ssljax.errors import UserError
from ssljax.losses.contrastive import masked_logsumexp, normalise, similarities


# ---------------------------------------------------------------------------------------------------- pairs and triplets
def distance(x, y, *, norm=2, eps=1e-6, eps_on="difference"):
    """Distance of rows x (..., D) and y (..., D), float32 (...): (sum |x - y + eps|^norm)^(1 / norm), as torch has it.

    eps_on="sum" adds eps to the sum in place of the differences, as optax has it. Either keeps the gradient finite where x = y.
    Raises UserError for another word.
    """
    if eps_on not in ("difference", "sum"):
        raise UserError(f"eps_on={eps_on!r}: expected 'difference' or 'sum'")
    apart = x.astype(jnp.float32) - y.astype(jnp.float32)
    inside, outside = (eps, 0.0) if eps_on == "difference" else (0.0, eps)
    return (jnp.sum(jnp.abs(apart + inside) ** norm, axis=-1) + outside) ** (1 / norm)


DISTANCES = {
    "euclidean": distance,
    "manhattan": lambda x, y: distance(x, y, norm=1),
    "cosine": lambda x, y: 1 - jnp.sum(normalise(x) * normalise(y), axis=-1),
}


def contrastive_pairs(x, y, same, *, margin, metric="euclidean"):
    """Pairs that belong together are drawn together, others pushed beyond a margin (Hadsell et al. 2006, eq. 4).

    loss = mean of (d^2 where same, else relu(margin - d)^2) / 2

    x, y: (B, D). same: (B,), 1 or True where row i of both belongs together. metric: "euclidean", "manhattan" or "cosine"
    (1 - cosine). -> float32 scalar. Raises UserError for another.
    """
    if metric not in DISTANCES:
        raise UserError(f"metric={metric!r}: expected one of {', '.join(map(repr, DISTANCES))}")
    d = DISTANCES[metric](x, y)
    return jnp.mean(jnp.square(jnp.where(same.astype(bool), d, jax.nn.relu(margin - d)))) / 2


def triplet(anchor, positive, negative, *, margin=1.0, norm=2, swap=False, eps=1e-6, eps_on="difference"):
    """Mean of relu(d(anchor, positive) - d(anchor, negative) + margin) over the triplets given (Weinberger and Saul 2009; Schroff et al.
    2015, eq. 3, who square the distances).

    anchor, positive, negative: (B, D). swap: the negative is as far as it is from the nearer of anchor and positive (Balntas et al.
    2016). norm, eps, eps_on: as in `distance`. -> float32 scalar.
    """
    apart = lambda x, y: distance(x, y, norm=norm, eps=eps, eps_on=eps_on)  # noqa: E731
    away = apart(anchor, negative)
    away = jnp.minimum(away, apart(positive, negative)) if swap else away
    return jnp.mean(jax.nn.relu(apart(anchor, positive) - away + margin))


# --------------------------------------------------------------------------------------------- all pairs, named by labels
def _squared_distances(z):
    """z (N, D) -> |z_i - z_j|^2 (N, N)."""
    z = z.astype(jnp.float32)
    squares = jnp.sum(jnp.square(z), axis=1)
    return jnp.maximum(squares[:, None] + squares[None, :] - 2 * similarities(z, z), 0.0)


def _distances(z):
    """z (N, D) -> |z_i - z_j| (N, N), with a gradient of 0 where it is 0."""
    squared = _squared_distances(z)
    apart = squared > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


def _masks(labels):
    """int (N,) -> bool (N, N): pairs of one label, but for i with itself; pairs of two labels."""
    same = labels[:, None] == labels[None, :]
    return same & ~jnp.eye(len(labels), dtype=bool), ~same


def _mean_of_some(values, mask):
    """Mean of values where the mask holds and they are above 0; 0 where there are none."""
    some = mask & (values > 0)
    return jnp.sum(jnp.where(some, values, 0.0)) / jnp.maximum(jnp.sum(some), 1)


def contrastive_by_label(z, labels, *, positive_margin=0.0, negative_margin=1.0):
    """Hinges on the distances of all pairs (after Hadsell et al. 2006; the distances are not squared).

    loss = mean of relu(d - positive_margin) over pairs of one label + mean of relu(negative_margin - d) over the others; each mean is
    of the terms above 0

    z: (N, D). labels: int (N,). -> float32 scalar.
    """
    d = _distances(z)
    positives, negatives = _masks(labels)
    near, far = jax.nn.relu(d - positive_margin), jax.nn.relu(negative_margin - d)
    return _mean_of_some(near, positives) + _mean_of_some(far, negatives)


def triplet_by_label(z, labels, *, margin=0.2, swap=False):
    """Hinges on all triplets of an anchor, another of its label, and one of another label (Schroff et al. 2015, eq. 3, not squared;
    "batch all" of Hermans et al. 2017, eq. 6).

    loss = mean of relu(d(a, p) - d(a, n) + margin), over the triplets where it is above 0

    z: (N, D). labels: int (N,). swap: as in `triplet`. -> float32 scalar. N^3 terms, never all of them in memory.
    """
    d = _distances(z)
    positives, negatives = _masks(labels)

    @jax.checkpoint  # an anchor's (N, N) terms are formed again in the backward pass, not kept
    def of(d, anchor):
        row, positive, negative = anchor
        away = jnp.minimum(row[None, :], d) if swap else row[None, :]
        terms = jax.nn.relu(row[:, None] - away + margin)  # (positive, negative)
        some = positive[:, None] & negative[None, :] & (terms > 0)
        return d, (jnp.sum(jnp.where(some, terms, 0.0)), jnp.sum(some))

    _, (sums, counts) = jax.lax.scan(of, d, (d, positives, negatives))
    return jnp.sum(sums) / jnp.maximum(jnp.sum(counts), 1)


def lifted_structure(z, labels, *, positive_margin=0.0, negative_margin=1.0):
    """Each positive pair against all negatives of both its ends (Oh Song et al. 2016, eq. 4).

    J_ip = log sum_n (exp(negative_margin - d_in) + exp(negative_margin - d_pn)) + d_ip - positive_margin
    loss = mean over positive pairs of relu(J)^2 / 2

    z: (N, D). labels: int (N,). -> float32 scalar, 0 where there are no positives or no negatives.
    """
    d = _distances(z)
    positives, negatives = _masks(labels)
    away, some = masked_logsumexp(negative_margin - d, negatives)
    terms = jnp.square(jax.nn.relu(jnp.logaddexp(away[:, None], away[None, :]) + d - positive_margin)) / 2
    pairs = positives & some[:, None]
    return jnp.sum(jnp.where(pairs, terms, 0.0)) / jnp.maximum(jnp.sum(pairs), 1)


def generalised_lifted_structure(z, labels, *, positive_margin=0.0, negative_margin=1.0):
    """One term an anchor (Hermans et al. 2017, section 2).

    loss = mean over i of relu(log sum_p exp(d_ip - positive_margin) + log sum_n exp(negative_margin - d_in))

    z: (N, D). labels: int (N,). A sum of nothing counts as 1. -> float32 scalar.
    """
    d = _distances(z)
    positives, negatives = _masks(labels)
    near, _ = masked_logsumexp(d - positive_margin, positives)
    away, _ = masked_logsumexp(negative_margin - d, negatives)
    return jnp.mean(jax.nn.relu(near + away))


def soft_nearest_neighbour(z, labels, *, temperature):
    """How likely a neighbour drawn by distance has the anchor's label (Frosst et al. 2019, eq. 1; NCA, Goldberger et al. 2004).

    loss_i = -log( sum_{p positive of i} exp(-|z_i - z_p|^2 / temperature) / sum_{j != i} exp(-|z_i - z_j|^2 / temperature) )

    z: (N, D). labels: int (N,). The mean runs over the anchors that have a positive. -> float32 scalar. Of normalised z it is
    `multi_positive` at half the temperature, which streams.
    """
    logits = -_squared_distances(z) / temperature
    positives, negatives = _masks(labels)
    numerator, some = masked_logsumexp(logits, positives)
    denominator, _ = masked_logsumexp(logits, positives | negatives)
    return jnp.sum(jnp.where(some, denominator - numerator, 0.0)) / jnp.maximum(jnp.sum(some), 1)


def nca(z, labels, *, temperature=1.0):
    """Neighbourhood components analysis (Goldberger et al. 2004, equations 1 to 3): the share of anchors that a neighbour drawn by
    distance would put into another class.

    loss = mean over i of 1 - sum_{p positive of i} exp(-|z_i - z_p|^2 / temperature) / sum_{j != i} exp(-|z_i - z_j|^2 / temperature)

    z: (N, D). labels: int (N,). The mean runs over the anchors that have a positive. -> float32 scalar in [0, 1].
    `soft_nearest_neighbour` is the mean of its logarithms.
    """
    logits = -_squared_distances(z) / temperature
    positives, negatives = _masks(labels)
    numerator, some = masked_logsumexp(logits, positives)
    denominator, _ = masked_logsumexp(logits, positives | negatives)
    return jnp.sum(jnp.where(some, -jnp.expm1(numerator - denominator), 0.0)) / jnp.maximum(jnp.sum(some), 1)


def n_pair(anchor, positive, labels, *, penalty=0.0, temperature=1.0):
    """Multi-class N-pair loss (Sohn 2016, eq. 6), classes that occur more than once sharing their target.

    logits = anchor @ positive.T / temperature;  target_ij = [labels_i == labels_j] / their number in row i
    loss = CE(logits, target) + penalty * mean of (|anchor_i|^2 + |positive_i|^2) / 2

    anchor, positive: (B, D), row i of both of the class labels_i. labels: int (B,). -> float32 scalar.
    """
    logits = similarities(anchor, positive) / temperature
    target = (labels[:, None] == labels[None, :]).astype(jnp.float32)
    target = target / jnp.sum(target, axis=1, keepdims=True)
    norms = [jnp.mean(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=1)) for x in (anchor, positive)]
    return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits, axis=1), axis=1)) + penalty * sum(norms) / 2


def multi_similarity(z, labels, *, alpha=2.0, beta=50.0, base=0.5):
    """Positives and negatives weighed by how hard they are (Wang et al. 2019, without its mining).

    loss_i = log(1 + sum_p exp(-alpha (s_ip - base))) / alpha + log(1 + sum_n exp(beta (s_in - base))) / beta, s = z_i . z_j

    z: (N, D), normalised by the caller. labels: int (N,). -> float32 scalar, the mean over all i.
    """
    apart = similarities(z, z) - base
    positives, negatives = _masks(labels)
    near, some_near = masked_logsumexp(-alpha * apart, positives)
    far, some_far = masked_logsumexp(beta * apart, negatives)
    near = jnp.where(some_near, jax.nn.softplus(near), 0.0) / alpha
    far = jnp.where(some_far, jax.nn.softplus(far), 0.0) / beta
    return jnp.mean(near + far)
