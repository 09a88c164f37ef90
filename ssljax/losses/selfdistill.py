"""Self-distillation: a student matches what a teacher makes of another crop, of the whole image, or of its neighbours."""

import jax
import jax.numpy as jnp

from ssljax.errors import UserError
from ssljax.losses.contrastive import normalise, similarities
from ssljax.losses.pairs import check_impl, expected, lse, nearest, statistics


# ------------------------------------------------------------------------------------------------------- distributions
def centred(teacher, centre, temperature):
    """softmax((teacher - centre) / temperature), the teacher's targets (DINO, Caron et al. 2021, Algorithm 1).

    teacher: (..., K) logits. centre: (K,), as it was before this batch. -> float32 (..., K), constant.
    """
    return jax.lax.stop_gradient(jax.nn.softmax((teacher.astype(jnp.float32) - centre) / temperature, axis=-1))


def across_crops(targets, student, *, temperature, pairs="different"):
    """Cross entropy of the student's crops with the targets of others (DINO, Caron et al. 2021, eq. 3).

    loss = mean over pairs (g, v) of mean over the batch of -sum_k targets_g log softmax(student_v / temperature)

    targets: (G, B, K) distributions, constant, of the first G crops. student: (V, B, K) logits, crop-major. pairs: "different" leaves
    out pairs of a crop with itself; "all" takes every pair, where the caller hands over other crops than the teacher's (DINOv2).
    -> float32 scalar. Raises UserError if no pair is left, and for another word.
    """
    if pairs not in ("different", "all"):
        raise UserError(f"pairs={pairs!r}: expected 'different' or 'all'")
    crops, batch, _ = student.shape
    views = targets.shape[0]
    if pairs == "different" and not (1 <= views <= crops and crops >= 2):
        raise UserError(f"pairs of crops need at least two crops, those of the teacher among them: got {crops}, {views} for the teacher")
    log_p = jax.nn.log_softmax(student.astype(jnp.float32) / temperature, axis=-1)  # (V, B, K)
    # Linear in the targets and in log p, so all G * V pairs are one product of sums; pairs of a crop with itself go off again.
    targets = jax.lax.stop_gradient(targets)
    every = -jnp.sum(targets.sum(0) * log_p.sum(0))
    if pairs == "all":
        return every / (batch * views * crops)
    return (every + jnp.sum(targets * log_p[:views])) / (batch * views * (crops - 1))


def dino(student, teacher, centre, *, student_temperature, teacher_temperature):
    """Cross entropy between centred, sharpened teacher and student, over crops (DINO, Caron et al. 2021, Algorithm 1).

    loss = `across_crops` of `centred`(teacher, centre, teacher_temperature) and the student's logits

    student: (V, B, K) logits, crop-major, the G crops that the teacher saw first. teacher: (G, B, K), constant here.
    centre: (K,), as it was before this batch. -> float32 scalar. Raises UserError if no pair is left.
    """
    return across_crops(centred(teacher, centre, teacher_temperature), student, temperature=student_temperature)


def ibot(student, targets, mask, *, temperature):
    """Masked patches take the distribution that the teacher gives them, who sees all of the image (iBOT, Zhou et al. 2022, section 3.1).

    loss = mean over images of the mean over their masked patches of -sum_k targets log softmax(student / temperature)

    student: (..., N, K) logits of the masked image's patches. targets: (..., N, K) distributions (`centred`, or `clustering.sinkhorn`
    with its mask), constant. mask: (..., N), 1 or True = masked; an image without any counts as 0. -> float32 scalar.
    """
    log_p = jax.nn.log_softmax(student.astype(jnp.float32) / temperature, axis=-1)
    cross_entropy = -jnp.sum(jax.lax.stop_gradient(targets) * log_p, axis=-1)  # (..., N)
    mask = mask.astype(jnp.float32)
    return jnp.mean(jnp.sum(cross_entropy * mask, axis=-1) / jnp.maximum(mask.sum(-1), 1))


def ressl(student, teacher, queue, *, student_temperature, teacher_temperature, impl="auto"):
    """A weakly augmented view's similarities to a queue are the target of a strongly augmented one's (ReSSL, Zheng et al. 2021, section 3).

    loss = mean of -sum_j softmax(teacher . queue_j / teacher_temperature) log softmax(student . queue_j / student_temperature)

    student, teacher: (B, D). queue: (K, D). All normalised by the caller; teacher and queue are constant. impl: as in `contrastive`.
    -> float32 scalar. Raises UserError for an unknown `impl`, and where the devices of the mesh do not divide B and K.
    """
    check_impl(impl)
    teacher, queue = jax.lax.stop_gradient((teacher.astype(jnp.float32) / teacher_temperature, queue))
    if impl == "dense":
        q = jax.nn.softmax(similarities(teacher, queue), axis=1)  # (B, K)
        return -jnp.mean(jnp.sum(q * jax.nn.log_softmax(similarities(student, queue) / student_temperature, axis=1), axis=1))
    asked, pair = (lse("all"), expected()), (teacher, queue.astype(jnp.float32))
    ((every, mean), _) = statistics(student, queue, 1 / student_temperature, rows=asked, teacher=pair, impl=impl)
    return jnp.mean(every.over(mean))


# -------------------------------------------------------------------------------------------------------------- features
def negative_cosine(prediction, target):
    """-mean cos(prediction, target) (SimSiam, Chen and He 2021, eq. 1). (..., D) each; target is constant. -> float32 scalar."""
    return -jnp.mean(jnp.sum(normalise(prediction) * normalise(jax.lax.stop_gradient(target)), axis=-1))


def simsiam(p0, p1, z0, z1):
    """Half the sum of both directions (SimSiam, Chen and He 2021, eq. 2): (`negative_cosine`(p0, z1) + `negative_cosine`(p1, z0)) / 2.

    p0, p1: (B, D), predictor's output for the two views. z0, z1: (B, D), projections, constant. -> float32 scalar in [-1, 1].
    """
    return (negative_cosine(p0, z1) + negative_cosine(p1, z0)) / 2


def byol(p0, p1, z0, z1):
    """Squared distance of unit vectors, the sum of both directions (BYOL, Grill et al. 2020, equation 2, symmetrised).

    loss = (2 - 2 mean cos(p0, z1)) + (2 - 2 mean cos(p1, z0))

    p0, p1: (B, D), predictor's output for the two views. z0, z1: (B, D), the teacher's projections, constant. -> float32 scalar in [0, 8].
    """
    return 4 + 2 * (negative_cosine(p0, z1) + negative_cosine(p1, z0))


def koleo(z, *, eps=1e-8, impl="auto"):
    """Spreads features by the distance to the nearest (Sablayrolles et al. 2019, section 3, as in DINOv2, Oquab et al. 2023, section 4).

    loss = -mean log(|z_i - z_n(i) + eps| + eps), z of unit norm, n(i) = argmax over j != i of z_i . z_j

    z: (B, D), normalised here, of the global batch. The gradient flows to both of a pair. Only impl="dense" holds the (B, B) matrix.
    -> float32 scalar.
    """
    z = normalise(z)
    if impl == "dense":
        others = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, similarities(*jax.lax.stop_gradient((z, z))))
        found = z[others.argmax(1)]
    else:
        found = nearest(z, impl)
    distance = jnp.sqrt(jnp.sum(jnp.square(z - found + eps), axis=1))  # eps also keeps the root off 0
    return -jnp.mean(jnp.log(distance + eps))


def gram(student, teacher):
    """Patches are as similar to each other as a former teacher had them (Gram anchoring, DINOv3, Simeoni et al. 2025, equation 2).

    loss = mean over images and pairs of patches of (x_i . x_j - y_i . y_j)^2, x and y of unit norm

    student, teacher: (..., N, D), normalised here; teacher is constant. -> float32 scalar. (The paper's text has a sum, its code a mean.)
    """
    similar = lambda z: jnp.einsum("...nd,...md->...nm", z, z, precision="highest")  # noqa: E731
    return jnp.mean(jnp.square(similar(normalise(student)) - similar(normalise(jax.lax.stop_gradient(teacher)))))


# ----------------------------------------------------------------------------------------------------- watching collapse
def update_centre(centre, teacher, momentum):
    """Moving average of the teacher's raw logits (DINO, eq. 4): momentum * centre + (1 - momentum) * mean over rows.

    centre: (K,). teacher: (..., K). momentum: scalar in [0, 1]. -> (K,), centre's dtype; constant.
    """
    mean = jnp.mean(teacher.astype(jnp.float32), axis=tuple(range(teacher.ndim - 1)))
    return jax.lax.stop_gradient(momentum * centre + (1 - momentum) * mean).astype(centre.dtype)


def feature_std(z):
    """Standard deviation over the batch of unit vectors, mean over dimensions, times sqrt(D) (SimSiam, section 4.1).

    z: (B, ..., D), normalised here. -> float32 scalar, constant: about 1 where directions are spread evenly over the sphere, 0 where all
    point one way.
    """
    return jnp.mean(normalise(jax.lax.stop_gradient(z)).std(0)) * z.shape[-1] ** 0.5


def entropy(logits):
    """Entropy of softmax(logits) in nats: logits (..., K) -> (...) float32, 0 (all on one) to log K (uniform).

    For probabilities pass their logarithm. A teacher whose entropy is at either end has collapsed (DINO, section 5.3).
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(jnp.where(jnp.isneginf(log_p), 0.0, jnp.exp(log_p) * log_p), axis=-1)


def entropy_of_mean(logits):
    """Entropy in nats of the mean over all rows of softmax(logits (..., K)), float32 scalar."""
    p = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).reshape(-1, logits.shape[-1]).mean(0)
    return jnp.sum(jax.scipy.special.entr(p))
