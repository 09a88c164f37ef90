"""Small heads on frozen features, trained by steps: the one loop that the probes share."""

import functools

import jax
import jax.numpy as jnp
import optax


def fit(loss, params, data, *, optimizer, steps, batch, seed):
    """`steps` of an optax optimizer on `loss(params, rows)` -> trained params. data: tree of arrays of N rows, of which each step draws
    `batch` with replacement. All on one device, in one program: the same on any number of devices."""
    data = jax.tree.map(jnp.asarray, data)
    return _run(loss, params, data, optimizer, steps, batch, jax.random.PRNGKey(seed))


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _run(loss, params, data, optimizer, steps, batch, rng):
    count = len(jax.tree.leaves(data)[0])

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (batch,), 0, count)
        grads = jax.grad(loss)(params, jax.tree.map(lambda x: x[rows], data))
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(rng, steps))[0][0]


def adamw(peak, steps, weight_decay=1e-4):
    """AdamW under a cosine that ends at 0."""
    return optax.adamw(optax.cosine_decay_schedule(peak, steps), weight_decay=weight_decay)


def standardised(train, test):
    """Both (..., D), by the mean and deviation of train's vectors; constant entries become 0."""
    axes = tuple(range(train.ndim - 1))
    mean, std = train.mean(axes), train.std(axes)
    std = jnp.where(std > 1e-6, std, 1.0)
    return (train - mean) / std, (test - mean) / std


def in_parts(function, rows, size=256):
    """function (M, ...) -> (M, ...) over `size` rows at a time."""
    import numpy as np

    return np.concatenate([np.asarray(function(rows[i : i + size])) for i in range(0, len(rows), size)])
