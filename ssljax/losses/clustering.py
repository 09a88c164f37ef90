"""Prototypes: a view predicts to which of them another view was assigned.

Scores are similarities of features and prototypes (..., B, K), which the caller normalises. Assignments are made of the global batch
and are constant.
"""

import jax
import jax.numpy as jnp

from ssljax.losses.classification import cross_entropy
from ssljax.losses.contrastive import normalise, similarities
from ssljax.losses.pairs import dot
from ssljax.losses.selfdistill import across_crops, entropy_of_mean


def cosines(z, prototypes):
    """z (..., D), prototypes (K, D), of any norm -> (..., K) float32. Where prototypes have unit norm by definition, this is where."""
    return similarities(normalise(z).reshape(-1, z.shape[-1]), normalise(prototypes)).reshape(*z.shape[:-1], -1)


def sinkhorn(scores, *, epsilon=0.05, iterations=3, mask=None):
    """Assignments that share the batch out evenly over the prototypes (SwAV, Caron et al. 2020, equations 3 to 5).

    q = exp(scores / epsilon), in all 1;  each iteration: prototypes to 1 / K each, then rows to 1 / B each;  finally times B

    scores: (..., B, K); axes in front are problems of their own. Probabilities are assigned by their logarithm, at epsilon=1. The last
    step makes every row a distribution; prototypes are then only nearly even. iterations=0: the exponentials, in all B.
    mask: (..., B), rows to leave out where it is 0; they get 0. -> float32 (..., B, K), constant.
    """
    logits = jax.lax.stop_gradient(scores).astype(jnp.float32) / epsilon
    batch = logits.shape[-2]
    if mask is not None:
        mask = mask.astype(bool)[..., None]
        logits = jnp.where(mask, logits, -1e30)  # -inf would make nan where no row is left
        batch = jnp.sum(mask, axis=-2, keepdims=True)
    # Offsets of rows and of columns, in logarithms and each up to a constant: large scores do not overflow, and no prototype is left
    # with nothing to divide.
    rows, columns = -jax.nn.logsumexp(logits, axis=(-2, -1), keepdims=True), 0.0
    for step in range(iterations):
        rows = -jax.nn.logsumexp(logits + columns, axis=-1, keepdims=True) if step else rows
        columns = -jax.nn.logsumexp(logits + (rows if mask is None else jnp.where(mask, rows, 0.0)), axis=-2, keepdims=True)
    q = jax.nn.softmax(logits + columns, axis=-1) if iterations else jnp.exp(logits + rows) * batch
    return q if mask is None else jnp.where(mask, q, 0.0)


def swav(scores, *, views=2, temperature=0.1, epsilon=0.05, iterations=3, queue=None, queue_used=None):
    """Crops predict each other's assignments (SwAV, Caron et al. 2020, equations 1, 2 and 6; Algorithm 1).

    loss = mean over pairs (g, v != g) of mean over the batch of -sum_k q_g log softmax(scores_v / temperature), q_g = `sinkhorn`

    scores: (V, B, K), crop-major, the `views` crops that are assigned first. queue: (views, M, K), the scores of earlier features,
    which are assigned with the batch and dropped. queue_used: scalar, 0 where the queue is left aside (default: never).
    -> float32 scalar. Raises UserError if no pair is left.
    """
    codes = swav_codes(scores[:views], epsilon=epsilon, iterations=iterations, queue=queue, queue_used=queue_used)
    return across_crops(codes, scores, temperature=temperature)


def swav_codes(scores, *, epsilon=0.05, iterations=3, queue=None, queue_used=None):
    """Each view's assignments (G, B, K): `sinkhorn` of scores (G, B, K), together with a queue's (G, M, K). Constant."""
    if queue is None:
        return sinkhorn(scores, epsilon=epsilon, iterations=iterations)
    both = jnp.concatenate([scores, queue.astype(scores.dtype)], axis=1)
    mask = None if queue_used is None else (jnp.arange(both.shape[1]) < scores.shape[1]) | (queue_used > 0)
    return sinkhorn(both, epsilon=epsilon, iterations=iterations, mask=mask)[:, : scores.shape[1]]


def spherical_kmeans(z, centroids, *, iterations=10, known=None, split=0.0):
    """k-means by cosine (DeepCluster-v2, Caron et al. 2020, appendix): each row to the nearest centroid, these to the unit mean of theirs.

    z: (N, D) of unit norm. centroids: (K, D), where to start. A cluster that has no row stays where it is; with `split`, the j-th of them
    goes beside the j-th largest cluster, so many times its coordinates away (DeepCluster, Caron et al. 2018, section 3.3). known: bool
    (N,), rows that count (default: all). -> centroids (K, D) of unit norm, cluster int32 (N,), -1 for rows that do not count; constant.
    """
    z, centroids = jax.lax.stop_gradient((z.astype(jnp.float32), normalise(centroids)))
    known = jnp.ones(len(z), bool) if known is None else known

    def nearest(centroids):  # a slice of the rows at a time: (N, K) would not fit
        best = jax.lax.map(lambda row: jnp.argmax(similarities(row[None], centroids)[0]), z, batch_size=4096)
        return jnp.where(known, best, -1).astype(jnp.int32)

    def step(_, centroids):
        cluster, count = nearest(centroids), len(centroids)
        sums = jax.ops.segment_sum(z, cluster, count)  # rows of cluster -1 fall out
        sizes = jnp.bincount(jnp.where(known, cluster, count), length=count)
        centroids = jnp.where(sizes[:, None] > 0, normalise(sums), centroids)
        if not split:
            return centroids
        donor = jnp.argsort(-sizes)[jnp.cumsum(sizes == 0) - 1]
        beside = centroids[donor] * (1 + split * jnp.where(jnp.arange(z.shape[1]) % 2, -1, 1))
        return jnp.where(sizes[:, None] > 0, centroids, normalise(beside))

    centroids = jax.lax.fori_loop(0, iterations, step, centroids)
    return centroids, nearest(centroids)


def whiten(x, width):
    """The first `width` principal components of rows x (N, D), each of variance 1, rows then of unit norm (DeepCluster, section 4.1)."""
    x = x.astype(jnp.float32) - x.mean(0)
    values, vectors = jnp.linalg.eigh(dot(x, x, (0, 0)) / len(x))  # rising
    return normalise(dot(x, vectors[:, -width:] * jax.lax.rsqrt(values[-width:] + 1e-6), (1, 0)))


def deepcluster_v2(scores, clusters, *, temperature=0.1):
    """Every crop predicts the cluster that k-means put its image into (DeepCluster-v2, Caron et al. 2020, appendix).

    loss = mean over heads of the mean over crops and images of CE(scores / temperature, cluster); images of cluster -1 are left out

    scores: (H, V, B, K), a head for each clustering. clusters: int (H, B). -> float32 scalar.
    """
    clusters = jnp.broadcast_to(clusters[:, None], scores.shape[:-1])
    of = lambda scores, clusters: cross_entropy(scores / temperature, clusters, mask=clusters >= 0)  # noqa: E731
    return jnp.mean(jax.vmap(of)(scores.astype(jnp.float32), clusters))


def sharpen(log_p, temperature):
    """p^(1 / temperature), in all 1 (MSN, Assran et al. 2022, section 3): log p (..., K) -> the same of the sharpened, float32."""
    return jax.nn.log_softmax(log_p.astype(jnp.float32) / temperature, axis=-1)


def _log_probabilities(scores, temperature, smoothing):
    log_p = jax.nn.log_softmax(scores.astype(jnp.float32) / temperature, axis=-1)
    return jnp.log((1 - smoothing) * jnp.exp(log_p) + smoothing / scores.shape[-1]) if smoothing else log_p


def msn(
    student, teacher, *, temperature=0.1, sharpening=0.25, iterations=0, regularisation=1.0, label_smoothing=0.0
):  # fmt: skip
    """Masked views predict the sharpened prototypes of the whole view (MSN, Assran et al. 2022, equations 1 and 2).

    p = softmax(student / temperature);  q = sharpen(softmax(teacher / temperature), sharpening), after that `sinkhorn` if asked for
    loss = mean of -sum_k q log p + regularisation * (log K - entropy of the mean p)

    student: (V, B, K), cosines with the prototypes. teacher: (B, K); constant. iterations: of Sinkhorn, on the sharpened probabilities;
    0: none. label_smoothing: p and q (ahead of sharpening) are mixed with so much of a uniform distribution. -> float32 scalar.
    """
    log_p = _log_probabilities(student, temperature, label_smoothing)
    teacher = jax.lax.stop_gradient(teacher)
    log_q = sharpen(_log_probabilities(teacher, temperature, label_smoothing), sharpening)
    q = sinkhorn(log_q, epsilon=1.0, iterations=iterations) if iterations else jnp.exp(log_q)
    match = -jnp.mean(jnp.sum(q * log_p, axis=-1))
    return match + regularisation * (jnp.log(student.shape[-1]) - entropy_of_mean(log_p))
