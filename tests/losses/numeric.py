"""What the tests of losses share: definitions in float64 numpy against ours in float32, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def check(loss, definition, *args, constant=(), rtol=1e-5):
    """loss(*args, *constant) in float32 and its slopes along random directions, against differences of the float64 definition."""
    args32 = [jnp.asarray(a, jnp.float32) for a in args]
    args = [np.asarray(a, np.float64) for a in args32]
    value, gradients = jax.jit(jax.value_and_grad(lambda *a: loss(*a, *constant), tuple(range(len(args)))))(*args32)
    assert value.dtype == jnp.float32 and value.shape == ()
    np.testing.assert_allclose(value, definition(*args, *constant), rtol=rtol, atol=1e-6)
    rng = np.random.default_rng(9)
    for i, (a, gradient) in enumerate(zip(args, gradients, strict=True)):
        for _ in range(2):
            way = rng.normal(size=a.shape)
            ends = [definition(*args[:i], a + h * way, *args[i + 1 :], *constant) for h in (1e-5, -1e-5)]
            slope = np.sum(np.asarray(gradient, np.float64) * way)
            scale = np.linalg.norm(np.asarray(gradient, np.float64)) * np.linalg.norm(way) / np.sqrt(a.size)
            np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-4 * scale + 1e-6)


def finite(loss, *args):
    """Value and gradients are finite."""
    out = jax.jit(jax.value_and_grad(loss, tuple(range(len(args)))))(*(jnp.asarray(a, jnp.float32) for a in args))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out)), out
