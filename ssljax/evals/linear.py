"""Linear probe on frozen features: multinomial logistic regression, full batch, by L-BFGS, the regularisers of a sweep one from another:
from the strongest down, each starts where the last ended, with what was learnt of the curvature, in the features' principal axes,
where the curvature is known beforehand but for a factor."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ssljax.evals import Context, need
from ssljax.evals.features import local_mesh, pad_rows

NEEDS = "features and label of the train and the test set"

REGULARISERS = tuple(10.0 ** (-6 + i / 2) for i in range(12))  # 1e-6 to 3e-1
SWEEP_TOLERANCE = 1e-4  # scikit-learn's
BLOCK = 2**21  # logits formed at a time: rows x classes


def run(context: Context) -> dict:
    """{"linear_top1": right or wrong of each test example, "linear_regulariser"}, the regulariser chosen inside the train set."""
    need(context, train=("features", "label"), test=("features", "label"))
    probe, regulariser = of(context)
    return {"linear_top1": right(probe, context.test["features"], context.test["label"]), "linear_regulariser": regulariser}


def evaluate(train: dict, test: dict, **options) -> dict[str, float]:
    """{"linear_top1": accuracy in [0, 1] on test, "linear_regulariser": the one chosen}; options: of `chosen`."""
    probe, regulariser = chosen(train, **options)
    return {"linear_top1": float(right(probe, test["features"], test["label"]).mean()), "linear_regulariser": regulariser}


def right(probe, features, labels) -> np.ndarray:
    """Whether a probe of one regulariser gives each row its label, bool (N,)."""
    return predict(probe, np.asarray(features))[0] == np.asarray(labels)


def of(context: Context):
    """`chosen` for a context, fitted once for all evaluators."""
    if "linear" not in context.kept:
        context.kept["linear"] = chosen(context.train, classes=context.classes, seed=context.seed)
    return context.kept["linear"]


def chosen(train: dict, *, classes: int, regularisers=REGULARISERS, steps: int = 200, holdout: float = 0.15, seed: int = 0):
    """-> the probe of `fit` on the whole train set, of one regulariser; that regulariser.

    train: {"features": (N, D), "label": (N,)}. The sweep is fitted on 1 - `holdout` of it, to SWEEP_TOLERANCE; the regulariser is the one
    that is most often right on the rest (ties: the stronger); the probe that is returned is fitted to `fit`'s tolerance. CLIP's logistic
    regression (Radford et al. 2021, appendix A.3) is this, features unscaled.
    """
    features, labels = np.asarray(train["features"], np.float32), np.asarray(train["label"])
    regularisers = np.sort(np.asarray(regularisers, np.float32))[::-1]  # strongest first: argmax settles ties its way
    order = np.random.default_rng(seed).permutation(len(features))
    held, rest = np.split(order, [max(1, round(holdout * len(order)))])
    sweep = fit(features[rest], labels[rest], classes=classes, regularisers=regularisers, steps=steps, tolerance=SWEEP_TOLERANCE)
    best = int((predict(sweep, features[held]) == labels[held]).mean(1).argmax())
    start = sweep["weights"][best], sweep["bias"][best]
    probe = fit(features, labels, classes=classes, regularisers=regularisers[best : best + 1], steps=steps, start=start)
    return probe, float(regularisers[best])


def fit(features, labels, *, classes: int, regularisers=REGULARISERS, steps: int = 200, tolerance: float = 1e-5, start=None) -> dict:
    """Minimises, for each of R regularisers r, mean cross-entropy + r / 2 * |weights|^2 (the bias free) on
    standardised features.

    That is sklearn's LogisticRegression(C=1 / (r * N)) after StandardScaler (C=2 / (r * N) for two classes, of which
    sklearn keeps one column). features (N, D), labels int (N,), on one device or spread over this process's devices by
    rows. At most `steps` evaluations of loss and gradient for each regulariser, which is done when no gradient entry exceeds
    `tolerance`.

    start: weights (D, classes) and bias (classes,) that the strongest regulariser begins from; zeros otherwise.
    Returns {"weights": (R, D, classes), "bias": (R, classes), "mean": (D,), "std": (D,), "loss": (R,), "gradient":
    (R,) its greatest entry, "steps": (R,) evaluations}, in the order of the regularisers given.
    """
    features, labels = np.asarray(features, np.float32), np.asarray(labels, np.int32)
    regularisers = np.asarray(regularisers, np.float32)
    mean, std = features.mean(0, np.float64), features.std(0, np.float64)
    std = np.where(std > 1e-6 * (np.abs(mean) + 1e-6), std, 1.0)  # a constant feature stays, as zeros
    mean, std = mean.astype(np.float32), std.astype(np.float32)
    n, d = features.shape

    mesh = local_mesh()
    rows = max(1, min(BLOCK // classes, -(-n // mesh.size)))  # of a block, on one device
    x = pad_rows((features - mean) / std, rows * mesh.size)
    y = np.concatenate([labels, np.full(len(x) - n, -1, np.int32)])  # -1: a padding row, of weight zero
    x, y = (jax.device_put(a, NamedSharding(mesh, P("rows"))) for a in (x, y))
    variances, axes = np.linalg.eigh(np.asarray(_covariance(x, n), np.float64))  # rotated, |weights| is the same
    axes = axes.astype(np.float32)
    x = _rotated(x, axes)
    w = jnp.zeros((d + 1, classes)) if start is None else jnp.concatenate([axes.T @ start[0], start[1][None]])
    order = np.argsort(-regularisers)  # strongest first
    curvatures = np.append(np.maximum(variances, 1e-6), 1).astype(np.float32) / classes  # of the loss at zero weights, where it is exact
    found = _solve(mesh, rows)(w, x, y, curvatures, regularisers[order], n, steps, tolerance)
    given = np.argsort(order)
    w, loss, gradient, used = (np.asarray(v)[given] for v in found)
    out = {"weights": axes @ w[:, :d], "bias": w[:, d], "mean": mean, "std": std}
    return out | {"loss": loss, "gradient": gradient, "steps": used}


def predict(probe: dict, features) -> np.ndarray:
    """Classes int (R, N) that each of the R probes of `fit` gives to features (N, D)."""
    r, _, c = probe["weights"].shape
    rows = max(1, BLOCK // (r * c))
    parts = [
        _classes(features[i : i + rows], *(probe[k] for k in ("weights", "bias", "mean", "std"))) for i in range(0, len(features), rows)
    ]
    return np.concatenate([np.asarray(part) for part in parts], axis=1)


@jax.jit
def _classes(features, weights, bias, mean, std):
    x = (features.astype(jnp.float32) - mean) / std
    logits = jnp.einsum("nd,rdc->rnc", x, weights, precision=lax.Precision.HIGHEST) + bias[:, None]
    return logits.argmax(-1)


# --------------------------------------------------------------------------------------------------
# The objective: loss and gradient in one pass over the rows, in blocks
# --------------------------------------------------------------------------------------------------


def _loss_and_gradient(w, x, y, n, *, rows: int):
    """Mean cross-entropy and its gradient: w (D + 1, C), the bias last; x (rows here, D), y (rows here,) -> (), gradient as w. Runs
    inside shard_map over "rows".
    """

    def step(total, block):
        x, y = block  # (rows, D), (rows,)
        logits = jnp.matmul(x, w[:-1], precision=lax.Precision.HIGHEST) + w[-1]
        target = jax.nn.one_hot(y, w.shape[1])  # a padding row is all zeros
        weight = (y >= 0).astype(jnp.float32)
        shifted = logits - logits.max(-1, keepdims=True)
        exp = jnp.exp(shifted)
        norm = exp.sum(-1, keepdims=True)
        loss = ((jnp.log(norm[..., 0]) - (shifted * target).sum(-1)) * weight).sum()
        residual = exp / norm * weight[:, None] - target  # (rows, C)
        gradient = jnp.matmul(x.T, residual, precision=lax.Precision.HIGHEST)
        return jax.tree.map(jnp.add, total, (loss, jnp.concatenate([gradient, residual.sum(0)[None]]))), None

    total, _ = lax.scan(step, (jnp.zeros(()), jnp.zeros_like(w)), (x.reshape(-1, rows, x.shape[1]), y.reshape(-1, rows)))
    return jax.tree.map(lambda t: lax.psum(t, "rows") / n, total)


@jax.jit
def _covariance(x, n):
    return jnp.matmul(x.T, x, precision=lax.Precision.HIGHEST) / n


@jax.jit
def _rotated(x, axes):
    return jnp.matmul(x, axes, precision=lax.Precision.HIGHEST)


@functools.cache
def _solve(mesh, rows: int):
    def solve(w, x, y, curvatures, regularisers, n, steps, tolerance):
        objective = jax.shard_map(
            functools.partial(_loss_and_gradient, rows=rows),
            mesh=mesh,
            in_specs=(P(), P("rows"), P("rows"), P()),
            out_specs=P(),
            check_vma=False,
        )
        decays = jnp.ones_like(w).at[-1].set(0.0).reshape(-1)  # the bias is free
        curvatures = jnp.broadcast_to(curvatures[:, None], w.shape).reshape(-1)

        def unregularised(flat):
            loss, gradient = objective(flat.reshape(w.shape), x, y, n)
            return loss, gradient.reshape(-1)

        def regularised(flat, r):
            loss, gradient = unregularised(flat)
            return loss + r / 2 * (decays * flat**2).sum(), gradient + r * decays * flat

        def next_regulariser(carry, r):
            problem, before = carry
            problem = _changed(problem, r - before, decays, curvatures + r * decays, tolerance)
            problem, used = lbfgs(lambda flat: regularised(flat, r), problem, steps=steps, tolerance=tolerance)
            return (problem, r), (problem.x.reshape(w.shape), problem.f, jnp.abs(problem.g).max(), used)

        start = _start(w.reshape(-1), *unregularised(w.reshape(-1)))
        return lax.scan(next_regulariser, (start, 0.0), regularisers)[1]

    return jax.jit(solve)


# --------------------------------------------------------------------------------------------------
# L-BFGS (Nocedal and Wright 2006, algorithm 7.5)
# --------------------------------------------------------------------------------------------------

MEMORY = 10


class Problem(NamedTuple):
    """How far the minimisation of a smooth convex function has come."""

    x: jax.Array  # (P,) the best point so far
    f: jax.Array  # () its loss
    g: jax.Array  # (P,) its gradient
    d: jax.Array  # (P,) search direction
    t: jax.Array  # () step length to try next
    h: jax.Array  # (P,) the Hessian's diagonal, as far as it is known beforehand
    s: jax.Array  # (MEMORY, P) past differences of x, newest last
    y: jax.Array  # (MEMORY, P) past differences of g
    rho: jax.Array  # (MEMORY,) 1 / (s . y); 0 for a place not filled yet, which makes it do nothing
    done: jax.Array  # () bool


def _start(x, f, g) -> Problem:
    zeros = jnp.zeros((MEMORY, len(x)))
    return Problem(x, f, g, -g, jnp.ones(()), jnp.ones_like(x), zeros, zeros, jnp.zeros(MEMORY), jnp.zeros((), bool))


def _changed(p: Problem, more, decays, h, tolerance) -> Problem:
    """The problem with `more` / 2 * |decays x|^2 added: no evaluation is needed, its past differences of g are known too."""
    y = p.y + more * decays * p.s
    curvature = (p.s * y).sum(-1)
    rho = jnp.where(curvature > 1e-10 * (y * y).sum(-1), 1 / jnp.where(curvature == 0, 1, curvature), 0.0)
    g = p.g + more * decays * p.x
    p = p._replace(f=p.f + more / 2 * (decays * p.x**2).sum(), g=g, h=h, y=y, rho=rho, done=jnp.abs(g).max() <= tolerance)
    return p._replace(d=_direction(p), t=jnp.ones(()))


def lbfgs(value_and_grad, problem, *, steps, tolerance):
    """Minimises a smooth convex function, value_and_grad(x (P,)) -> f (), g (P,). Returns the `Problem` and the evaluations used.

    Every evaluation is a trial step: one that succeeds gives the next direction, one that fails shortens its step. The test of a step
    uses the slope at its end, which float32 still resolves where differences of the loss are noise.
    """

    def go_on(carry):
        problem, used = carry
        return (used < steps) & ~problem.done

    def step(carry):
        problem, used = carry
        f, g = value_and_grad(problem.x + problem.t * problem.d)
        moved, shortened = _accept(problem, f, g, tolerance=tolerance), _shorten(problem, g)
        good = _good(problem, f, g)
        return jax.tree.map(lambda new, short: jnp.where(good, new, short), moved, shortened), used + 1

    return lax.while_loop(go_on, step, (problem, jnp.zeros((), jnp.int32)))


def _good(p: Problem, f, g):
    """Armijo's rule, or close to convergence the approximate Wolfe rule (Hager and Zhang 2005, equation 4.1): not
    climbing steeply at the end.
    """
    before, after = p.g @ p.d, g @ p.d
    return (f <= p.f + 1e-4 * p.t * before) | ((after <= -0.8 * before) & (f <= p.f + 1e-6 * jnp.abs(p.f)))


def _shorten(p: Problem, g) -> Problem:
    """To where the slope, taken as linear along the step, is zero; a step too short to change anything ends the
    search.
    """
    before, after = p.g @ p.d, g @ p.d
    t = p.t * jnp.clip(before / (before - after), 0.1, 0.5)
    return p._replace(t=t, done=p.done | ~(t > 1e-8))


def _accept(p: Problem, f, g, *, tolerance) -> Problem:
    s, y = p.t * p.d, g - p.g
    keep = s @ y > 1e-10 * (y @ y)  # curvature that rounding has not eaten

    def push(past, new):
        return jnp.where(keep, jnp.concatenate([past[1:], new[None]]), past)

    p = p._replace(
        x=p.x + s,
        f=f,
        g=g,
        t=jnp.ones_like(p.t),
        s=push(p.s, s),
        y=push(p.y, y),
        rho=push(p.rho, 1 / jnp.where(keep, s @ y, 1)),
    )
    return p._replace(d=_direction(p), done=jnp.abs(g).max() <= tolerance)


def _direction(p: Problem):
    """Minus the inverse Hessian's estimate times the gradient: the two-loop recursion (algorithm 7.4)."""

    def down(q, past):
        s, y, rho = past
        a = rho * (s @ q)
        return q - a * y, a

    q, alphas = lax.scan(down, p.g, (p.s, p.y, p.rho), reverse=True)
    s, y = p.s[-1], p.y[-1]
    scale = jnp.where(p.rho[-1] > 0, (s @ y) / jnp.maximum(y @ (y / p.h), 1e-30), 1.0)

    def up(q, past):
        s, y, rho, a = past
        return q + (a - rho * (y @ q)) * s, None

    return -lax.scan(up, scale * q / p.h, (p.s, p.y, p.rho, alphas))[0]
