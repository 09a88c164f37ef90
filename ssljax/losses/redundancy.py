"""Redundancy reduction: views agree, and what keeps them from collapsing is a statistic of the batch, not negatives.

Statistics are over the batch axis of the arrays given, so over the global batch. No function normalises or centres its inputs
unless that is part of its definition, which then says so. Inputs are of any float dtype, the arithmetic is float32.
"""

import math

import jax
import jax.numpy as jnp

from ssljax.errors import UserError
from ssljax.losses import streaming
from ssljax.losses.contrastive import normalise, nt_xent, similarities
from ssljax.losses.pairs import check_impl, column_products, dot, lse, statistics


def _float32(*arrays):
    return [x.astype(jnp.float32) for x in arrays]


def _off_diagonal(matrix):
    """Zeros on the diagonal of (..., D, D)."""
    return jnp.where(jnp.eye(matrix.shape[-1], dtype=bool), 0.0, matrix)


def _at_least_two(views, what):
    if len(views) < 2:
        raise UserError(f"{what} compares views: got {len(views)}, expected at least 2")


def _by_rows(*sides):
    """Whether the squares of the products of columns are cheaper by those of rows (`column_products`): where the rows (N, D) of all
    sides together are no more than the columns, and the devices divide them."""
    rows, *columns = sides[0].shape
    layout = streaming.layout_of(*sides)
    return len(columns) == 1 and len(sides) * rows <= columns[0] and (layout is None or rows % layout.size == 0)


# ----------------------------------------------------------------------------------------------------- cross-correlation
def barlow_twins(z0, z1, *, off_diagonal=0.005, scale=1.0, eps=1e-5):
    """Cross-correlation of two views, pulled to the identity (Barlow Twins, Zbontar et al. 2021, equations 1 and 2, Algorithm 1).

    c = standardise(z0).T @ standardise(z1) / B                  # (D, D), biased variance + eps inside the root
    loss = scale * (sum_i (c_ii - 1)^2 + off_diagonal * sum_{i != j} c_ij^2)

    z0, z1: (B, D). off_diagonal: the paper's lambda. scale: solo-learn's 0.1 or 0.025, which stands for a smaller learning rate.
    -> float32 scalar.
    """
    z0, z1 = ((z - z.mean(0)) * jax.lax.rsqrt(z.var(0) + eps) for z in _float32(z0, z1))
    if _by_rows(z0, z1):
        diagonal = jnp.mean(z0 * z1, axis=0)
        others = column_products(z0, z1) / len(z0) ** 2 - jnp.sum(jnp.square(diagonal))
        return scale * (jnp.sum(jnp.square(diagonal - 1)) + off_diagonal * others)
    c = dot(z0, z1, (0, 0)) / len(z0)
    on = jnp.eye(len(c), dtype=bool)
    return scale * jnp.sum(jnp.where(on, jnp.square(c - 1), off_diagonal * jnp.square(c)))


# ------------------------------------------------------------------------------------------------ variance and covariance
def variance_hinge(z, *, eps=1e-4):
    """How far standard deviations over the batch are below 1 (VICReg, Bardes et al. 2022, equations 1 and 2).

    mean over dimensions of relu(1 - sqrt(var + eps)), unbiased variance. z: (B, ..., D); axes between have statistics of their own.
    -> float32 scalar.
    """
    return jnp.mean(jax.nn.relu(1 - jnp.sqrt(z.astype(jnp.float32).var(0, ddof=1) + eps)))


def covariance_penalty(z):
    """Sum of squared covariances off the diagonal, over D (VICReg, Bardes et al. 2022, equations 3 and 4).

    z: (B, ..., D); axes between have covariances of their own, and the mean is taken over them. -> float32 scalar.
    """
    z = z.astype(jnp.float32)
    z = z - z.mean(0)
    if _by_rows(z):
        others = column_products(z) - jnp.sum(jnp.square(jnp.sum(jnp.square(z), axis=0)))
        return others / (len(z) - 1) ** 2 / z.shape[1]
    covariance = jnp.einsum("b...c,b...d->...cd", z, z, precision="highest") / (len(z) - 1)
    return jnp.mean(jnp.sum(jnp.square(_off_diagonal(covariance)), axis=(-2, -1))) / z.shape[-1]


def _squared_error(x, y):
    return jnp.mean(jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32)))


def vicreg(z0, z1, *, invariance=25.0, variance=25.0, covariance=1.0, eps=1e-4, variance_over_views="mean"):
    """Variance, invariance, covariance (VICReg, Bardes et al. 2022, equation 6, Algorithm 1).

    loss = invariance * mean (z0 - z1)^2 + variance * (v(z0) + v(z1)) [/ 2] + covariance * (c(z0) + c(z1))
    v: `variance_hinge`, c: `covariance_penalty`

    z0, z1: (B, ..., D); axes between, e.g. matched patches, have statistics of their own. invariance, variance, covariance: the
    paper's lambda, mu, nu. variance_over_views: "mean" as in the authors' code, "sum" as in the paper's text. -> float32 scalar.
    Raises UserError for another word.
    """
    if variance_over_views not in ("mean", "sum"):
        raise UserError(f"variance_over_views={variance_over_views!r}: expected 'mean' or 'sum'")
    hinges = variance_hinge(z0, eps=eps) + variance_hinge(z1, eps=eps)
    hinges = hinges / 2 if variance_over_views == "mean" else hinges
    covariances = covariance_penalty(z0) + covariance_penalty(z1)
    return invariance * _squared_error(z0, z1) + variance * hinges + covariance * covariances


def _squared_distances(x, y):
    """x (B, M, D), y (B, N, D) -> (B, M, N), constant."""
    x, y = jax.lax.stop_gradient(_float32(x, y))
    products = jnp.einsum("bmd,bnd->bmn", x, y, precision="highest")
    return jnp.sum(jnp.square(x), -1)[:, :, None] + jnp.sum(jnp.square(y), -1)[:, None, :] - 2 * products


def _matches(x, y, distances, count):
    """The `count` rows of x (B, M, D) nearest to any of y (B, N, D), nearest first, and what they are nearest to."""
    nearest = distances.argmin(2)  # (B, M)
    rows = jnp.argsort(distances.min(2), axis=1)[:, :count]
    take = lambda z, index: jnp.take_along_axis(z, index[:, :, None], axis=1)  # noqa: E731
    return take(x, rows), take(y, jnp.take_along_axis(nearest, rows, axis=1))


def vicregl(
    pooled, maps, grids, *, large=None, matches=(20, 4), alpha=0.75, invariance=25.0, variance=25.0, covariance=1.0, eps=1e-4
):  # fmt: skip
    """VICReg of whole images and of patches that match (VICRegL, Bardes et al. 2022, section 3).

    loss = alpha * whole + (1 - alpha) * patches
    whole: VICReg with all three terms averaged over views, and invariance over pairs of views
    patches: mean over pairs (a, b) of the sum of VICReg over patches matched by features and by place in the image, each the mean of
             two directions, from a to b with the matches[0] nearest pairs and from b to a with the matches[1] nearest

    pooled: V arrays (B, D). maps: V arrays (B, h, w, E). grids: V arrays (B, h, w, 2), where in the image each patch has its centre.
    large: views from which pairs start (the large crops stand first; default: all); they end at every other view. alpha, invariance,
    variance, covariance: the paper's alpha, lambda, mu, nu; both its covariance terms are halved, as the authors' code has them.
    -> float32 scalar. Raises UserError for fewer than two views, and lists of different lengths.
    """
    _at_least_two(pooled, "VICRegL")
    if not len(pooled) == len(maps) == len(grids):
        raise UserError(f"VICRegL needs a map and a grid for each view: got {len(pooled)} views, {len(maps)} maps, {len(grids)} grids")
    maps = [m.reshape(len(m), -1, m.shape[-1]) for m in maps]  # (B, N, E)
    grids = [g.reshape(len(g), -1, 2) for g in grids]
    pairs = [(a, b) for a in range(large or len(pooled)) for b in range(len(pooled)) if a != b]
    mean = lambda values: sum(values) / len(values)  # noqa: E731

    whole = invariance * mean([_squared_error(pooled[a], pooled[b]) for a, b in pairs])
    whole += variance * mean([variance_hinge(z, eps=eps) for z in pooled]) + covariance * mean([covariance_penalty(z) for z in pooled])

    weights = dict(invariance=invariance, variance=variance, covariance=covariance / 2, eps=eps)

    def patches(a, b, places):
        distances = _squared_distances(places[a], places[b])
        there = vicreg(*_matches(maps[a], maps[b], distances, matches[0]), **weights)
        back = vicreg(*_matches(maps[b], maps[a], distances.swapaxes(1, 2), matches[1]), **weights)
        return (there + back) / 2

    return alpha * whole + (1 - alpha) * mean([patches(a, b, maps) + patches(a, b, grids) for a, b in pairs])


# -------------------------------------------------------------------------------------------------------------- whitening
def _whiten(z, shrinkage):
    """z (..., N, D) -> (z - mean) @ inverse(L).T, L the Cholesky factor of its (shrunk) unbiased covariance."""
    z = z - z.mean(-2, keepdims=True)
    covariance = jnp.einsum("...nc,...nd->...cd", z, z, precision="highest") / (z.shape[-2] - 1)
    covariance = (1 - shrinkage) * covariance + shrinkage * jnp.eye(z.shape[-1])
    factor = jnp.linalg.cholesky(covariance)
    return jax.scipy.linalg.solve_triangular(factor, z.swapaxes(-1, -2), lower=True).swapaxes(-1, -2)


def w_mse(views, *, size=None, orders=None, shrinkage=0.0):
    """Squared distance between views whitened over the batch (W-MSE, Ermolov et al. 2021, section 3).

    loss = mean over pairs of views of mean 2 - 2 cos(w(z_i), w(z_j)), w: whitening by the Cholesky factor of the covariance

    views: (V, B, D). size: rows of a slice that is whitened by itself (the paper's 256 at D = 128; default: the batch). orders: int
    (I, B), permutations of the batch ahead of the slicing, over which the loss is averaged (the authors draw them at random; default:
    as it comes). shrinkage: how far the covariance is pulled to the identity, 0 to 1. -> float32 scalar. Raises UserError for fewer
    than two views, where size does not divide B, and where a slice is too small for its covariance to be invertible.
    """
    _at_least_two(views, "W-MSE")
    count, batch, dim = views.shape
    size = batch if size is None else size
    if batch % size:
        raise UserError(f"W-MSE: slices of size={size} do not fill a batch of {batch}")
    if size <= dim and not shrinkage:
        raise UserError(f"W-MSE: {size} rows have no invertible covariance in {dim} dimensions; make slices longer or set shrinkage")

    def of(views):
        slices = views.astype(jnp.float32).reshape(count, -1, size, dim)
        white = normalise(_whiten(slices, shrinkage)).reshape(count, batch, dim)
        # The sum over pairs of products is that of all products of sums less that of each with itself, which is 1.
        return (jnp.mean(jnp.sum(jnp.square(white.sum(0)), axis=-1)) - count) / (count * (count - 1))

    cosines = of(views) if orders is None else jnp.mean(jax.vmap(lambda order: of(views[:, order]))(orders))
    return 2 - 2 * cosines


# ------------------------------------------------------------------------------------- covariance that remembers: TiCo
def update_covariance(covariance, z, momentum):
    """Moving average of second moments (TiCo, Zhu et al. 2022, Algorithm 1): momentum * covariance + (1 - momentum) * z.T @ z / B.

    covariance: (D, D), zeros at the start. z: (B, D), normalised by the caller. -> (D, D), covariance's dtype; constant.
    """
    z = jax.lax.stop_gradient(z.astype(jnp.float32))
    return (momentum * covariance + (1 - momentum) * dot(z, z, (0, 0)) / len(z)).astype(covariance.dtype)


def tico(z0, z1, covariance, *, weight=8.0):
    """Invariance and a covariance contrast (TiCo, Zhu et al. 2022, Algorithm 1).

    loss = 1 - mean z0 . z1 + weight * mean z0.T @ covariance @ z0

    z0, z1: (B, D), normalised by the caller. covariance: (D, D), `update_covariance` with this batch's z0; constant here. weight: the
    paper's rho. -> float32 scalar.
    """
    z0, z1, covariance = _float32(z0, z1, jax.lax.stop_gradient(covariance))
    return 1 - jnp.mean(jnp.sum(z0 * z1, axis=1)) + weight * jnp.mean(jnp.sum(dot(z0, covariance, (1, 0)) * z0, axis=1))


# ------------------------------------------------------------------------------------------------- spectra of the batch
def mmcr(views, *, compactness=0.0):
    """Nuclear norm of the centroids of images, as large as may be (MMCR, Yerxa et al. 2023, section 3).

    loss = -|mean over views|_* + compactness * mean over images of |views of the image|_*, |x|_* the sum of singular values

    views: (V, B, D), normalised by the caller. compactness: the paper's lambda. -> float32 scalar.
    """
    views = views.astype(jnp.float32)
    nuclear = lambda x: jnp.linalg.svd(x, compute_uv=False).sum(-1)  # noqa: E731
    loss = -nuclear(views.mean(0))
    return loss + compactness * jnp.mean(nuclear(views.swapaxes(0, 1))) if compactness else loss


def frossl(views, *, invariance=1.0):
    """Frobenius norms of normalised covariances, as small as may be (FroSSL, Skean et al. 2024).

    z = views with columns of unit norm over the batch;  r = z.T @ z / trace, the trace constant
    loss = sum over views of log |r|_F^2 + invariance * V * D * mean (z - mean over views)^2

    views: (V, B, D). -> float32 scalar. Raises UserError for fewer than two views.
    """
    _at_least_two(views, "FroSSL")
    count, batch, dim = views.shape
    z = normalise(views.swapaxes(1, 2)).swapaxes(1, 2)
    # The smaller of the two Gram matrices has the same non-zero eigenvalues.
    gram = jnp.einsum("vbc,vbd->vcd" if batch > dim else "vbc,vdc->vbd", z, z, precision="highest")
    trace = jax.lax.stop_gradient(jnp.trace(gram, axis1=1, axis2=2))
    norms = jnp.sum(jnp.square(gram / (trace[:, None, None] + 1e-30)), axis=(1, 2)) + 1e-30  # finite where all features are 0
    errors = jnp.sum(jnp.mean(jnp.square(z - z.mean(0)), axis=(1, 2)))
    return jnp.sum(jnp.log(norms)) + invariance * count * dim * errors


def coding_rate(z, *, eps):
    """Half the log-determinant of 1 + D / (N eps) z.T @ z (MCR^2, Yu et al. 2020, section 2, eps for its square).

    z: (..., N, D). -> float32 (...), mean over no axis.
    """
    z, (rows, columns) = z.astype(jnp.float32), z.shape[-2:]
    # z @ z.T has the same determinant, by Sylvester's identity: the smaller of the two.
    gram = jnp.einsum("...nc,...nd->...cd" if rows >= columns else "...nc,...mc->...nm", z, z, precision="highest")
    factor = jnp.linalg.cholesky(jnp.eye(min(rows, columns)) + gram * (columns / (rows * eps)))
    return jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)


def emp_ssl(views, *, eps=0.2, invariance=200.0, rate=1.0):
    """Patches agree with their mean, and each view fills the space (EMP-SSL, Tong et al. 2023).

    loss = -invariance * mean cos(z_v, mean over views) - rate * mean over views of `coding_rate`(z_v)

    views: (V, B, D), normalised by the caller. eps: not squared, as in the authors' code. rate: 1 makes the coding rate large, as
    the paper has it; the package lightly makes it small, -1. -> float32 scalar. Raises UserError for fewer than two views.
    """
    _at_least_two(views, "EMP-SSL")
    cosines = jnp.sum(normalise(views) * normalise(views.astype(jnp.float32).mean(0)), axis=-1)
    return -invariance * jnp.mean(cosines) - rate * jnp.mean(coding_rate(views, eps=eps))


# ----------------------------------------------------------------------------------------------- distributions on a sphere
def alignment(z0, z1, *, power=2.0):
    """mean |z0 - z1|^power (Wang and Isola 2020, section 4). z0, z1: (B, D), normalised by the caller. -> float32 scalar."""
    squared = jnp.sum(jnp.square(z0.astype(jnp.float32) - z1.astype(jnp.float32)), axis=-1)
    some = squared > 0  # a root has no slope at 0
    return jnp.mean(jnp.where(some, jnp.where(some, squared, 1.0) ** (power / 2), 0.0))


def uniformity(z, *, t=2.0, impl="auto"):
    """Logarithm of the mean Gaussian potential of pairs (Wang and Isola 2020, section 4): log mean_{i < j} exp(-t |z_i - z_j|^2).

    z: (B, D), normalised by the caller: the norms are taken to be 1. impl: as in `contrastive`. -> float32 scalar. Raises UserError
    for an unknown `impl`, and a batch that the devices do not divide.
    """
    check_impl(impl)
    if impl == "dense":
        logits = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, 2 * t * similarities(z, z))
        sums = jax.nn.logsumexp(logits, axis=1)
    else:
        (others,), _ = statistics(z, None, 2 * t, rows=(lse("others"),), impl=impl)
        sums = others.value
    return jax.nn.logsumexp(sums) - math.log(len(z) * (len(z) - 1)) - 2 * t


def align_uniform(z0, z1, *, power=2.0, t=2.0, weight=1.0, impl="auto"):
    """Alignment and uniformity (Wang and Isola 2020, section 5): alignment + weight * the mean of both views' uniformity.

    z0, z1: (B, D), normalised by the caller. power, t, weight: the paper's alpha, t, lambda. impl: as in `contrastive`.
    -> float32 scalar. Raises UserError as `uniformity` does.
    """
    return alignment(z0, z1, power=power) + weight * (uniformity(z0, t=t, impl=impl) + uniformity(z1, t=t, impl=impl)) / 2


def direct_clr(z0, z1, *, dim, temperature, impl="auto"):
    """NT-Xent on the first `dim` coordinates of the encoder's features, no projector (DirectCLR, Jing et al. 2022, section 6).

    z0, z1: (B, D); their first `dim` coordinates are normalised here. impl: as in `contrastive`. -> float32 scalar. Raises UserError
    as `nt_xent` does, and for a `dim` beyond D.
    """
    if not 0 < dim <= z0.shape[-1]:
        raise UserError(f"DirectCLR: dim={dim}, expected 1 to the width of the features, {z0.shape[-1]}")
    return nt_xent(normalise(z0[:, :dim]), normalise(z1[:, :dim]), temperature=temperature, impl=impl)


# ------------------------------------------------------------------------------------------------- isotropic Gaussians
def sigreg(z, directions, *, knots=17, t_max=3.0):
    """How far one-dimensional sketches are from a standard normal: the Epps-Pulley test on random directions (LeJEPA, Balestriero and
    LeCun 2025, Algorithm 1).

    B * integral over t in [-t_max, t_max] of |mean_b exp(i t z_b . a) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), by the trapezoidal rule with
    `knots` on the half that t > 0; mean over the directions a, and over the axes in front

    z: (..., B, D). directions: (D, A), columns of unit norm, drawn anew each step by the caller. -> float32 scalar.
    """
    t = jnp.linspace(0.0, t_max, knots)
    weights = jnp.full(knots, 2 * t_max / (knots - 1)).at[jnp.array([0, -1])].mul(0.5)
    normal = jnp.exp(-jnp.square(t) / 2)
    sketch = jnp.einsum("...bd,da->...ba", *_float32(z, directions), precision="highest")[..., None] * t  # (..., B, A, knots)
    errors = jnp.square(jnp.cos(sketch).mean(-3) - normal) + jnp.square(jnp.sin(sketch).mean(-3))
    return z.shape[-2] * jnp.mean(jnp.sum(errors * weights * normal, axis=-1))


def lejepa(views, directions, *, large=None, weight=0.05, knots=17, t_max=3.0):
    """Views agree with the mean of the large ones and are distributed like an isotropic Gaussian (LeJEPA, Balestriero and LeCun 2025,
    Algorithm 2).

    loss = (1 - weight) * mean (z_v - mean of the large views)^2 + weight * `sigreg`(views)

    views: (V, B, D), the `large` ones (default: all) in front. directions: (D, A), columns of unit norm. weight: the paper's lambda.
    -> float32 scalar.
    """
    views = views.astype(jnp.float32)
    centre = views[: large or len(views)].mean(0)
    return (1 - weight) * _squared_error(views, centre) + weight * sigreg(views, directions, knots=knots, t_max=t_max)
