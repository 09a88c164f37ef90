"""Self-distillation: a student matches the distribution of a teacher that sees another crop."""

import jax
import jax.numpy as jnp

from ssljax.errors import UserError


def dino(student, teacher, centre, *, student_temperature, teacher_temperature):
    """Cross entropy between centred, sharpened teacher and student, over crops (DINO, Caron et al. 2021, Algorithm 1).

    q_g = softmax((teacher_g - centre) / teacher_temperature),  log p_v = log_softmax(student_v / student_temperature)
    loss = mean over pairs (g, v != g) of mean over the batch of -sum_k q_g log p_v

    student: (V, B, K) logits, crop-major, the G crops that the teacher saw first. teacher: (G, B, K), constant here.
    centre: (K,), as it was before this batch. -> float32 scalar. Raises UserError if no pair is left.
    """
    crops, batch, _ = student.shape
    views = teacher.shape[0]
    if not 1 <= views <= crops or crops < 2:
        raise UserError(f"DINO needs at least two crops, those of the teacher among them: got {crops} and {views} for the teacher")
    q = jax.nn.softmax((teacher.astype(jnp.float32) - centre) / teacher_temperature, axis=-1)
    q = jax.lax.stop_gradient(q)  # (G, B, K)
    log_p = jax.nn.log_softmax(student.astype(jnp.float32) / student_temperature, axis=-1)  # (V, B, K)
    # Linear in q and in log p, so all G * V pairs are one product of sums; pairs of a crop with itself go off again.
    pairs = -jnp.sum(q.sum(0) * log_p.sum(0)) + jnp.sum(q * log_p[:views])
    return pairs / (batch * views * (crops - 1))


def update_centre(centre, teacher, momentum):
    """Moving average of the teacher's raw logits (DINO, eq. 4): momentum * centre + (1 - momentum) * mean over rows.

    centre: (K,). teacher: (..., K). momentum: scalar in [0, 1]. -> (K,), centre's dtype; constant.
    """
    mean = jnp.mean(teacher.astype(jnp.float32), axis=tuple(range(teacher.ndim - 1)))
    return jax.lax.stop_gradient(momentum * centre + (1 - momentum) * mean).astype(centre.dtype)


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
