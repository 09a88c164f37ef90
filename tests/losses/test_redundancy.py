"""Redundancy reduction against definitions in float64; what the golden figures have (values and gradients) is not asked again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssljax import losses
from ssljax.errors import UserError
from ssljax.metrics import count_flops
from tests.losses.numeric import check, finite, normal, unit


def whitened(z, shrinkage):
    z = z - z.mean(0)
    covariance = (1 - shrinkage) * np.cov(z.T) + shrinkage * np.eye(z.shape[1])
    return z @ np.linalg.inv(np.linalg.cholesky(covariance)).T


def w_mse(views, orders, size, shrinkage):
    out = []
    for order in orders:
        w = np.empty_like(views)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            for v, view in enumerate(views):
                w[v, rows] = whitened(view[rows], shrinkage)
        for i in range(len(views)):
            for j in range(i):
                out.append(np.mean(2 - 2 * np.sum(unit(w[i]) * unit(w[j]), -1)))
    return np.mean(out)


@pytest.mark.quick
@pytest.mark.parametrize("views, size, shrinkage", [(2, 24, 0.0), (3, 12, 0.1)])
def test_w_mse(views, size, shrinkage):
    z = normal(views, 24, 4) + normal(1, 24, 4, seed=1)
    orders = np.stack([np.random.default_rng(i).permutation(24) for i in range(2)])
    ours = lambda z: losses.w_mse(z, size=size, orders=jnp.asarray(orders), shrinkage=shrinkage)  # noqa: E731
    check(ours, lambda z: w_mse(z, orders, size, shrinkage), z)


@pytest.mark.quick
def test_w_mse_refuses():
    z = jnp.zeros((2, 8, 8))
    with pytest.raises(UserError, match="no invertible covariance"):
        losses.w_mse(z)
    with pytest.raises(UserError, match="do not fill a batch of 8"):
        losses.w_mse(z, size=3)
    with pytest.raises(UserError, match="at least 2"):
        losses.w_mse(z[:1])


def test_vicregl_of_views_of_two_sizes():
    """One small view more: a loop over the pairs that start at a large view."""
    pooled = [normal(6, 5, seed=i) for i in range(3)]
    maps = [normal(6, n, n, 4, seed=3 + i) for i, n in enumerate((3, 3, 2))]
    grids = [np.random.default_rng(6 + i).uniform(size=(6, n, n, 2)) for i, n in enumerate((3, 3, 2))]

    def vicreg(a, b, covariance):
        off = ~np.eye(a.shape[-1], dtype=bool)
        hinge = lambda z: np.mean(np.maximum(1 - np.sqrt(z.var(0, ddof=1) + 1e-4), 0))  # noqa: E731
        decorrelate = lambda z: np.sum(np.cov(z.T)[off] ** 2) / z.shape[-1]  # noqa: E731
        return 25 * np.mean((a - b) ** 2), 25 * (hinge(a) + hinge(b)) / 2, covariance * (decorrelate(a) + decorrelate(b))

    def matched(a, b, place_a, place_b, count):
        rows = [[], []]
        for x, y, px, py in zip(a, b, place_a, place_b, strict=True):
            d = np.linalg.norm(px[:, None] - py[None], axis=-1)
            best = np.argsort(d.min(1), kind="stable")[:count]
            rows[0].append(x[best]), rows[1].append(y[d.argmin(1)[best]])
        x, y = map(np.stack, rows)  # (B, count, D): each place in the order has statistics of its own
        return np.mean([sum(vicreg(x[:, i], y[:, i], 0.5)) for i in range(x.shape[1])])

    flat = lambda z: z.reshape(6, -1, z.shape[-1])  # noqa: E731

    def definition(g0, g1, g2, m0, m1, m2):
        pooled, maps, pairs = (g0, g1, g2), [flat(m) for m in (m0, m1, m2)], [(0, 1), (0, 2), (1, 0), (1, 2)]
        whole = np.mean([vicreg(pooled[a], pooled[b], 1.0)[0] for a, b in pairs])
        whole += np.mean([vicreg(z, z, 0.5)[1] + vicreg(z, z, 0.5)[2] for z in pooled])
        patches = [
            (matched(maps[a], maps[b], p[a], p[b], 4) + matched(maps[b], maps[a], p[b], p[a], 2)) / 2
            for a, b in pairs
            for p in (maps, [flat(g) for g in grids])
        ]
        return 0.75 * whole + 0.25 * 2 * np.mean(patches)

    f32 = [jnp.asarray(g, jnp.float32) for g in grids]
    check(lambda *z: losses.vicregl(z[:3], z[3:], f32, large=2, matches=(4, 2)), definition, *pooled, *maps)


@pytest.mark.quick
def test_alignment_of_any_power_and_uniformity():
    a, b = unit(normal(6, 4)), unit(normal(6, 4, seed=1))
    check(lambda a, b: losses.alignment(a, b, power=1.0), lambda a, b: np.mean(np.linalg.norm(a - b, axis=1)), a, b)
    d = [np.exp(-3 * np.sum((a[i] - a[j]) ** 2)) for i in range(6) for j in range(i)]
    for impl in ("dense", "auto"):
        np.testing.assert_allclose(losses.uniformity(jnp.asarray(a, jnp.float32), t=3.0, impl=impl), np.log(np.mean(d)), rtol=1e-5)


@pytest.mark.quick
def test_emp_ssl_makes_the_coding_rate_large():
    z = unit(normal(3, 8, 4))

    def definition(z):
        rates = [np.linalg.slogdet(np.eye(4) + 4 / (8 * 0.2) * v.T @ v)[1] / 2 for v in z]
        return -2.0 * np.mean(np.sum(unit(z) * unit(z.mean(0)), -1)) - np.mean(rates)

    check(lambda z: losses.emp_ssl(z, invariance=2.0), definition, z)


@pytest.mark.quick
def test_settings_that_are_refused():
    z = jnp.zeros((2, 4, 3))
    with pytest.raises(UserError, match="'mean' or 'sum'"):
        losses.vicreg(z[0], z[1], variance_over_views="max")
    with pytest.raises(UserError, match="dim=4"):
        losses.direct_clr(z[0], z[1], dim=4, temperature=0.1)
    with pytest.raises(UserError, match="a map and a grid"):
        losses.vicregl([z[0], z[1]], [z], [z])
    for loss in (losses.frossl, losses.emp_ssl):
        with pytest.raises(UserError, match="at least 2"):
            loss(z[:1])


# name: loss of two views (2, B, D); `directions` are fixed
DIRECTIONS = jnp.asarray(unit(normal(5, 4, seed=8)).T, jnp.float32)
LOSSES = {
    "barlow_twins": lambda z: losses.barlow_twins(z[0], z[1]),
    "vicreg": lambda z: losses.vicreg(z[0], z[1]),
    "w_mse": lambda z: losses.w_mse(z, shrinkage=0.1),
    "tico": lambda z: losses.tico(*losses.normalise(z), losses.update_covariance(jnp.eye(4), losses.normalise(z[0]), 0.9)),
    "mmcr": lambda z: losses.mmcr(losses.normalise(z), compactness=0.01),
    "frossl": losses.frossl,
    "emp_ssl": losses.emp_ssl,
    "align_uniform": lambda z: losses.align_uniform(*losses.normalise(z)),
    "lejepa": lambda z: losses.lejepa(z, DIRECTIONS),
}


@pytest.mark.quick
def test_finite_where_all_has_collapsed():
    every = lambda z: sum(loss(z) for loss in LOSSES.values())  # noqa: E731
    finite(every, np.zeros((2, 8, 4)))
    finite(every, np.ones((2, 8, 4)))


def test_statistics_are_of_the_global_batch():
    z = jnp.asarray(normal(2, 16, 4), jnp.float32)

    def parts(z):
        values = {name: loss(z) for name, loss in LOSSES.items()}
        return sum(values.values()), values

    every = jax.jit(jax.value_and_grad(parts, has_aux=True))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(z, NamedSharding(mesh, PartitionSpec(None, "data")))
    for ours, expected in zip(jax.tree.leaves(every(split)), jax.tree.leaves(every(z)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max()))


def barlow_twins(x, y):
    x, y = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (x, y))
    c = x.T @ y / len(x)
    return np.sum((np.diag(c) - 1) ** 2) + 0.005 * np.sum((c - np.diag(np.diag(c))) ** 2)


def covariance_penalty(z):
    c = np.cov(z.T)
    return np.sum((c - np.diag(np.diag(c))) ** 2) / len(c)


WIDE = {"barlow_twins": (losses.barlow_twins, barlow_twins, 2), "covariance_penalty": (losses.covariance_penalty, covariance_penalty, 1)}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", WIDE)
def test_more_columns_than_rows(name, devices):
    """The products are then of rows: the definition, and 4 M of M = 2 N N D FLOPs for two sides, 2 M for one."""
    loss, definition, sides = WIDE[name]
    args = [normal(16, 40, seed=i) + normal(16, 40) for i in range(sides)]
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        check(loss, definition, *args)
        gradient = jax.grad(lambda *z: loss(*z), tuple(range(sides)))
        assert count_flops(gradient, *(jnp.asarray(z, jnp.float32) for z in args)) == sides * 2 * (2 * 16 * 16 * 40)
