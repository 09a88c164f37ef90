"""Schedules against float64 formulas written step by step."""

import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from ssljax import schedules
from ssljax.errors import UserError

pytestmark = pytest.mark.quick


def values(schedule, count):
    got = schedule(jnp.arange(count, dtype=jnp.int32))
    assert got.dtype == jnp.float32
    return np.asarray(got, np.float64)


@pytest.mark.parametrize("reach_final", [False, True])
@pytest.mark.parametrize("warmup, first, last", [("after", 0.0, 0.8), ("within", 0.0, 1.0), ("ahead", 0.2, 1.0)])
def test_cosine_and_its_warmups(warmup, first, last, reach_final):
    got = values(schedules.cosine(1.0, 0.1, 25, warmup_steps=5, warmup=warmup, reach_final=reach_final), 30)
    np.testing.assert_allclose(got[:5], np.linspace(first, last, 5), rtol=1e-6)
    n = 19 if reach_final else 20
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * min(t, n) / n)) / 2 for t in range(25)]
    np.testing.assert_allclose(got[5:], cosine, rtol=1e-6)


def test_cosine_stays_exact_in_long_runs():
    steps = 3_000_001
    schedule = schedules.cosine(1e-3, 0.0, steps, warmup_steps=10_000)
    for step in (0, 1, 9_999, 10_000, 1_234_567, steps - 1000, steps - 1, steps, steps + 7):
        left = max(steps - step, 0) / (steps - 10_000)
        expected = 1e-3 * (step / 10_000 if step < 10_000 else math.sin(math.pi / 2 * left) ** 2)
        np.testing.assert_allclose(schedule(jnp.int32(step)), expected, rtol=1e-5, atol=1e-30)


def test_linear_rsqrt_stairs_constant():
    np.testing.assert_allclose(values(schedules.linear(0.04, 0.07, 6), 8), [*np.linspace(0.04, 0.07, 7), 0.07], rtol=1e-6)
    squared = [2 + 1 * (1 - t / 4) ** 2 for t in range(5)]
    np.testing.assert_allclose(values(schedules.linear(3.0, 2.0, 4, power=2), 5), squared, rtol=1e-6)
    expected = [2 * min(1, s / 4) / math.sqrt(max(s - 4, 0) / 10 + 1) * min(1, (40 - s) / 8) for s in range(41)]
    got = values(schedules.rsqrt(2.0, 40, timescale=10, warmup_steps=4, cooldown_steps=8), 41)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    got = values(schedules.stairs(1.0, 9, at=(3, 6), factors=(0.1, 0.01), warmup_steps=2), 9)
    np.testing.assert_allclose(got, [0, 0.5, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01], rtol=1e-6)
    got = values(schedules.constant(0.07, 9, warmup_steps=4, warmup_start=0.04, warmup="within"), 6)
    np.testing.assert_allclose(got, [0.04, 0.05, 0.06, 0.07, 0.07, 0.07], rtol=1e-6)


def test_scalars_under_jit_are_strong_float32():
    for schedule in (
        schedules.constant(1.0),
        schedules.cosine(1.0, 0.0, 9, warmup_steps=2),
        schedules.linear(1.0, 0.0, 9),
    ):
        out = jax.eval_shape(schedule, jnp.zeros((), jnp.int32))
        assert (out.shape, out.dtype, out.weak_type) == ((), jnp.float32, False)


def test_make():
    spec = ml_collections.ConfigDict({"kind": "cosine", "peak": 1e-3, "warmup_steps": 10})
    by_hand = schedules.cosine(1e-3, 0.0, 100, warmup_steps=10)
    np.testing.assert_array_equal(values(schedules.make(spec, 100), 101), values(by_hand, 101))
    shorter = schedules.make({"kind": "linear", "peak": 1.0, "final": 0.5, "steps": 10}, 100)
    assert shorter(50) == 0.5
    np.testing.assert_array_equal(values(schedules.make(0.05, 100), 3), np.float32([0.05] * 3))
    assert schedules.make({"kind": "constant", "value": 2.0}, 100)(7) == 2.0


@pytest.mark.parametrize(
    "spec, says",
    [
        ({"kind": "cosin", "peak": 1.0}, ["'cosin'", "cosine", "rsqrt"]),
        ({"peak": 1.0}, ["None", "cosine"]),
        ({"kind": "cosine", "peek": 1.0}, ["unknown peek=1.0", "peak", "warmup_steps"]),
        ({"kind": "cosine"}, ["missing peak"]),
        ({"kind": "cosine", "peak": "big"}, ["peak='big'", "type"]),
        ({"kind": "cosine", "peak": 1.0, "warmup": "slow"}, ["'slow'", "within"]),
        ({"kind": "cosine", "peak": 1.0, "warmup_steps": 101}, ["warmup_steps=101", "steps=100"]),
        ({"kind": "stairs", "peak": 1.0, "at": [5], "factors": []}, ["factors=()"]),
    ],
)
def test_errors(spec, says):
    with pytest.raises(UserError) as error:
        schedules.make(spec, 100)
    for words in says:
        assert words in str(error.value)
