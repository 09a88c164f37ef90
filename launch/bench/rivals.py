"""The forms in which others compute contrastive losses, each written from its published description, for `losses.py` to compare with.

All take global arrays x, y (B, D), split by rows over the mesh axis "data" of `jax.set_mesh`, multiply in full precision, and return
the same scalar as `ssljax.losses.clip_softmax` or `siglip`. The dense forms name no device: the compiler splits them.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

AXIS = "data"
TILE = 512  # rows of a tile, as in ssljax.losses.streaming
SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()


def dot(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def cross_entropies(logits, first=0):
    """logits (M, N), whose row i belongs to column first + i -> sum over the rows."""
    mine = jnp.arange(logits.shape[1])[None, :] == first + jnp.arange(logits.shape[0])[:, None]
    return jnp.sum(jax.nn.logsumexp(logits, axis=1) - jnp.sum(jnp.where(mine, logits, 0.0), axis=1))


def log_likelihood(logits, positive):
    """Sum over all pairs of log sigmoid(logit) where the pair is positive, log sigmoid(-logit) elsewhere."""
    return jnp.sum(jax.nn.log_sigmoid(jnp.where(positive, logits, -logits)))


def varying(value):
    """A constant as the initial value of what will differ between devices."""
    return lax.pcast(jnp.float32(value), AXIS, to="varying")


def tiles(z):
    """(N, ...) -> (N / TILE, TILE, ...)."""
    return z.reshape(-1, min(TILE, len(z)), *z.shape[1:])


def onward(tree):
    """Every device's arrays to its right-hand neighbour."""
    devices = lax.axis_size(AXIS)
    return jax.tree.map(lambda a: lax.ppermute(a, AXIS, [(i, (i + 1) % devices) for i in range(devices)]), tree)


# ------------------------------------------------------------------------------------------------------------ softmax
def all_gather_everywhere(x, y, logit_scale):
    """Every device gathers both sides and computes the whole loss (Radford et al. 2021, Figure 3, on a gathered batch; open_clip's
    ClipLoss with gather_with_grad alone). The gradient of the gathering is a reduce-scatter."""

    def local(x, y, logit_scale):
        x, y = (lax.all_gather(z, AXIS, tiled=True) for z in (x, y))
        logits = logit_scale * dot(x, y.T)  # (B, B) on every device
        return lax.pmean((cross_entropies(logits) + cross_entropies(logits.T)) / (2 * len(x)), AXIS)

    return jax.shard_map(local, in_specs=(SPLIT, SPLIT, WHOLE), out_specs=WHOLE)(x, y, logit_scale)


def local_rows(x, y, logit_scale):
    """Local rows against gathered columns, in both directions (open_clip's ClipLoss with local_loss and gather_with_grad).
    Both gradients of the gathered sides are reduce-scattered."""

    def local(x, y, logit_scale):
        first = lax.axis_index(AXIS) * len(x)
        all_x, all_y = (lax.all_gather(z, AXIS, tiled=True) for z in (x, y))
        images = cross_entropies(logit_scale * dot(x, all_y.T), first)  # (B / devices, B)
        texts = cross_entropies(logit_scale * dot(y, all_x.T), first)
        return lax.psum(images + texts, AXIS) / (2 * len(all_x))

    return jax.shard_map(local, in_specs=(SPLIT, SPLIT, WHOLE), out_specs=WHOLE)(x, y, logit_scale)


def scan_remat(x, y, logit_scale):
    """Local rows a tile at a time, rematerialised for the gradient (Chen et al. 2016's checkpointing, as `jax.checkpoint` in a `lax.scan`),
    against gathered columns, in both directions."""

    def local(x, y, logit_scale):
        def direction(rows, columns):
            columns = lax.all_gather(columns, AXIS, tiled=True)
            start = lax.axis_index(AXIS) * len(rows)

            @jax.checkpoint
            def tile(total, part):
                i, rows = part
                return total + cross_entropies(logit_scale * dot(rows, columns.T), start + i * len(rows)), None

            rows = tiles(rows)
            return lax.scan(tile, varying(0.0), (jnp.arange(len(rows)), rows))[0]

        return lax.psum(direction(x, y) + direction(y, x), AXIS)

    return jax.shard_map(local, in_specs=(SPLIT, SPLIT, WHOLE), out_specs=WHOLE)(x, y, logit_scale) / (2 * len(x))


def inf_cl(x, y, logit_scale):
    """Inf-CL (Cheng et al. 2024, "Breaking the Memory Barrier", Algorithm 1 and its code): keys travel a ring of devices, tiles of logits
    feed running log-sum-exps, and the backward pass forms the tiles again, once for the queries' gradient and once for the keys'.
    The two directions are two passes. The scale is multiplied into the queries."""
    positives = logit_scale * jnp.sum(x * y, axis=1)
    return jnp.mean((ring_logsumexp(logit_scale * x, y) + ring_logsumexp(logit_scale * y, x)) / 2 - positives)


@jax.custom_vjp
def ring_logsumexp(q, k):
    """q, k (B, D) -> log sum_j exp(q_i . k_j) (B,)."""
    return _ring_forward(q, k)[0]


def _ring_forward(q, k):
    def visit(q, k, state):
        def tile(state, k, q):
            logits = dot(q, k.T)
            largest = jnp.maximum(state[0], logits.max(1))
            return (largest, state[1] * jnp.exp(state[0] - largest) + jnp.exp(logits - largest[:, None]).sum(1)), None

        def row(_, of):
            return None, lax.scan(functools.partial(tile, q=of[0]), of[1], k)[0]

        return lax.scan(row, None, (q, state))[1]

    def local(q, k):
        q, k = tiles(q), tiles(k)
        state = jnp.full(q.shape[:2], -jnp.inf), jnp.zeros(q.shape[:2])

        def hop(carry, _):
            k = onward(carry[0])
            return (k, visit(q, k, carry[1])), None

        (_, (largest, total)), _ = lax.scan(hop, (k, visit(q, k, state)), length=lax.axis_size(AXIS) - 1)
        return (largest + jnp.log(total)).reshape(-1)

    lse = jax.shard_map(local, in_specs=(SPLIT, SPLIT), out_specs=SPLIT, check_vma=False)(q, k)
    return lse, (q, k, lse)


def _ring_backward(residuals, slope):
    def probabilities(q, k, lse, slope):
        return jnp.exp(dot(q, k.T) - lse[:, None]) * slope[:, None]

    def visit(rows, k, dq, dk):
        def row(_, of):  # the kernel of dq: a row of tiles at a time
            (q, lse, slope), dq = of
            add = lambda dq, k: (dq + dot(probabilities(q, k, lse, slope), k), None)  # noqa: E731
            return None, lax.scan(add, dq, k)[0]

        def column(_, of):  # the kernel of dk: a column of tiles at a time
            k, dk = of
            add = lambda dk, row: (dk + dot(probabilities(row[0], k, *row[1:]).T, row[0]), None)  # noqa: E731
            return None, lax.scan(add, dk, rows)[0]

        return lax.scan(row, None, (rows, dq))[1], lax.scan(column, None, (k, dk))[1]

    def local(q, k, lse, slope):
        rows, k = (tiles(q), tiles(lse), tiles(slope)), tiles(k)
        dq, dk = visit(rows, k, jnp.zeros_like(rows[0]), jnp.zeros_like(k))

        def hop(carry, _):
            k, dq, dk = carry
            k, dk = onward((k, dk))
            return (k, *visit(rows, k, dq, dk)), None

        (_, dq, dk), _ = lax.scan(hop, (k, dq, dk), length=lax.axis_size(AXIS) - 1)
        dk = onward(dk)  # home
        return dq.reshape(q.shape), dk.reshape(q.shape)

    return jax.shard_map(local, in_specs=SPLIT, out_specs=SPLIT, check_vma=False)(*residuals, slope)


ring_logsumexp.defvjp(_ring_forward, _ring_backward)


# ------------------------------------------------------------------------------------------------------------ sigmoid
def siglip_full(x, y, logit_scale, bias):
    """SigLIP on the whole matrix (Zhai et al. 2023, Algorithm 1; big_vision's siglip trainer)."""
    logits = logit_scale * dot(x, y.T) + bias
    return -log_likelihood(logits, jnp.eye(len(x), dtype=bool)) / len(x)


def siglip_chunked(x, y, logit_scale, bias):
    """SigLIP's chunked form (Zhai et al. 2023, section 3.3 and Figure 1): texts travel a ring of devices, each hop a block of
    (B / devices)^2 pairs, rematerialised for the gradient; differentiated through the ring."""

    def local(x, y, logit_scale, bias):
        @jax.checkpoint
        def block(y, home):
            logits = logit_scale * dot(x, y.T) + bias
            return log_likelihood(logits, jnp.eye(len(x), dtype=bool) & home)

        def hop(carry, _):
            total, y = carry
            y = onward(y)
            return (total + block(y, False), y), None

        (total, _), _ = lax.scan(hop, (block(y, True), y), length=lax.axis_size(AXIS) - 1)
        return -lax.psum(total, AXIS)

    return jax.shard_map(local, in_specs=(SPLIT, SPLIT, WHOLE, WHOLE), out_specs=WHOLE)(x, y, logit_scale, bias) / len(x)
