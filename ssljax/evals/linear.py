"""Linear probe on frozen features: multinomial logistic regression, full batch, by L-BFGS, every regulariser of a
sweep at once.
"""

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
BLOCK = 2**21  # logits formed at a time: rows x regularisers x classes


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

    train: {"features": (N, D), "label": (N,)}. The sweep is fitted on 1 - `holdout` of it, the regulariser is the one that is most often
    right on the rest (ties: the stronger). CLIP's logistic regression (Radford et al. 2021, appendix A.3) is this, features unscaled.
    """
    features, labels = np.asarray(train["features"], np.float32), np.asarray(train["label"])
    regularisers = np.sort(np.asarray(regularisers, np.float32))[::-1]  # strongest first: argmax settles ties its way
    order = np.random.default_rng(seed).permutation(len(features))
    held, rest = np.split(order, [max(1, round(holdout * len(order)))])
    sweep = fit(features[rest], labels[rest], classes=classes, regularisers=regularisers, steps=steps)
    best = int((predict(sweep, features[held]) == labels[held]).mean(1).argmax())
    start = sweep["weights"][best : best + 1], sweep["bias"][best : best + 1]
    probe = fit(features, labels, classes=classes, regularisers=regularisers[best : best + 1], steps=steps, start=start)
    return probe, float(regularisers[best])


def fit(features, labels, *, classes: int, regularisers=REGULARISERS, steps: int = 200, tolerance: float = 1e-5, start=None) -> dict:
    """Minimises, for each of R regularisers r, mean cross-entropy + r / 2 * |weights|^2 (the bias free) on
    standardised features.

    That is sklearn's LogisticRegression(C=1 / (r * N)) after StandardScaler (C=2 / (r * N) for two classes, of which
    sklearn keeps one column). features (N, D), labels int (N,), on one device or spread over this process's devices by
    rows. At most `steps` evaluations of loss and gradient; a regulariser is done when no gradient entry exceeds
    `tolerance`.

    start: weights (R, D, classes) and bias (R, classes) to begin from; zeros otherwise.
    Returns {"weights": (R, D, classes), "bias": (R, classes), "mean": (D,), "std": (D,), "loss": (R,), "gradient":
    (R,) its greatest entry, "steps"}.
    """
    features, labels = np.asarray(features, np.float32), np.asarray(labels, np.int32)
    regularisers = jnp.asarray(regularisers, jnp.float32)
    mean, std = features.mean(0, np.float64), features.std(0, np.float64)
    std = np.where(std > 1e-6 * (np.abs(mean) + 1e-6), std, 1.0)  # a constant feature stays, as zeros
    mean, std = mean.astype(np.float32), std.astype(np.float32)
    n, d, r = *features.shape, len(regularisers)

    mesh = local_mesh()
    rows = max(1, min(BLOCK // (r * classes), -(-n // mesh.size)))  # of a block, on one device
    x = pad_rows((features - mean) / std, rows * mesh.size)
    y = np.concatenate([labels, np.full(len(x) - n, -1, np.int32)])  # -1: a padding row, of weight zero
    x, y = (jax.device_put(a, NamedSharding(mesh, P("rows"))) for a in (x, y))
    w = jnp.zeros((r, d + 1, classes)) if start is None else jnp.concatenate([start[0], start[1][:, None]], 1)
    w, loss, gradient, used = _solve(mesh, rows)(w, x, y, regularisers, n, steps, tolerance)
    out = {"weights": w[:, :d], "bias": w[:, d], "mean": mean, "std": std}
    out |= {"loss": loss, "gradient": gradient, "steps": used}
    return {k: np.asarray(v) for k, v in out.items()}


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
# The objective: loss and gradient of all regularisers in one pass over the rows, in blocks
# --------------------------------------------------------------------------------------------------


def _loss_and_gradient(w, x, y, regularisers, n, *, rows: int):
    """w (R, D + 1, C), the bias last; x (rows here, D), y (rows here,) -> loss (R,), gradient as w. Runs inside
    shard_map over "rows".
    """
    r, d, c = w.shape[0], w.shape[1] - 1, w.shape[2]
    flat = w[:, :d].transpose(1, 0, 2).reshape(d, r * c)  # all regularisers side by side: one matmul
    bias = w[:, d]  # (R, C)

    def step(total, block):
        x, y = block  # (rows, D), (rows,)
        logits = jnp.matmul(x, flat, precision=lax.Precision.HIGHEST).reshape(rows, r, c) + bias
        target = jax.nn.one_hot(y, c)[:, None]  # (rows, 1, C); a padding row is all zeros
        weight = (y >= 0).astype(jnp.float32)[:, None]  # (rows, 1)
        shifted = logits - logits.max(-1, keepdims=True)
        exp = jnp.exp(shifted)
        norm = exp.sum(-1, keepdims=True)
        loss = ((jnp.log(norm[..., 0]) - (shifted * target).sum(-1)) * weight).sum(0)
        residual = exp / norm * weight[..., None] - target  # (rows, R, C)
        gradient = jnp.matmul(x.T, residual.reshape(rows, r * c), precision=lax.Precision.HIGHEST)  # (D, R * C)
        return jax.tree.map(jnp.add, total, (loss, gradient, residual.sum(0))), None

    zero = jnp.zeros(r), jnp.zeros((d, r * c)), jnp.zeros((r, c))
    total, _ = lax.scan(step, zero, (x.reshape(-1, rows, d), y.reshape(-1, rows)))
    loss, gradient, bias_gradient = jax.tree.map(lambda t: lax.psum(t, "rows") / n, total)
    gradient = gradient.reshape(d, r, c).transpose(1, 0, 2) + regularisers[:, None, None] * w[:, :d]
    loss = loss + regularisers / 2 * jnp.square(w[:, :d]).sum((1, 2))
    return loss, jnp.concatenate([gradient, bias_gradient[:, None]], 1)


@functools.cache
def _solve(mesh, rows: int):
    def solve(w, x, y, regularisers, n, steps, tolerance):
        objective = jax.shard_map(
            functools.partial(_loss_and_gradient, rows=rows),
            mesh=mesh,
            in_specs=(P(), P("rows"), P("rows"), P(), P()),
            out_specs=P(),
            check_vma=False,
        )
        r = w.shape[0]

        def value_and_grad(flat):
            loss, gradient = objective(flat.reshape(w.shape), x, y, regularisers, n)
            return loss, gradient.reshape(r, -1)

        state, used = lbfgs(value_and_grad, w.reshape(r, -1), steps=steps, tolerance=tolerance)
        return state.x.reshape(w.shape), state.f, jnp.abs(state.g).max(-1), used

    return jax.jit(solve)


# --------------------------------------------------------------------------------------------------
# L-BFGS (Nocedal and Wright 2006, algorithm 7.5) for R convex problems side by side
# --------------------------------------------------------------------------------------------------

MEMORY = 10


class Lane(NamedTuple):
    """One problem's state; `lbfgs` holds R of them stacked."""

    x: jax.Array  # (P,) the best point so far
    f: jax.Array  # () its loss
    g: jax.Array  # (P,) its gradient
    d: jax.Array  # (P,) search direction
    t: jax.Array  # () step length to try next
    s: jax.Array  # (MEMORY, P) past differences of x, newest last
    y: jax.Array  # (MEMORY, P) past differences of g
    rho: jax.Array  # (MEMORY,) 1 / (s . y); 0 for a place not filled yet, which makes it do nothing
    done: jax.Array  # () bool


def lbfgs(value_and_grad, x, *, steps, tolerance):
    """Minimises R smooth convex functions: value_and_grad(x (R, P)) -> f (R,), g (R, P). Returns the stacked `Lane`
    and the evaluations used.

    Every evaluation is a trial step of all R: one that succeeds gives the next direction, one that fails shortens its
    step, and no problem waits for another's line search. The test of a step uses the slope at its end, which float32
    still resolves where differences of the loss are noise.
    """
    f, g = value_and_grad(x)
    r, p = x.shape
    zeros = jnp.zeros((r, MEMORY, p))
    first = 1.0 / jnp.maximum(1.0, jnp.linalg.norm(g, axis=-1))
    lanes = Lane(x, f, g, -g, first, zeros, zeros, jnp.zeros((r, MEMORY)), jnp.abs(g).max(-1) <= tolerance)

    def go_on(carry):
        lanes, used = carry
        return (used < steps) & ~lanes.done.all()

    def step(carry):
        lanes, used = carry
        f, g = value_and_grad(lanes.x + lanes.t[:, None] * lanes.d)
        moved = jax.vmap(functools.partial(_accept, tolerance=tolerance))(lanes, f, g)
        shortened = jax.vmap(_shorten)(lanes, g)
        good = jax.vmap(_good)(lanes, f, g)

        def pick(old, new, short):
            wide = (-1,) + (1,) * (old.ndim - 1)
            return jnp.where(lanes.done.reshape(wide), old, jnp.where(good.reshape(wide), new, short))

        return jax.tree.map(pick, lanes, moved, shortened), used + 1

    return lax.while_loop(go_on, step, (lanes, jnp.asarray(1, jnp.int32)))


def _good(lane: Lane, f, g):
    """Armijo's rule, or close to convergence the approximate Wolfe rule (Hager and Zhang 2005, equation 4.1): not
    climbing steeply at the end.
    """
    before, after = lane.g @ lane.d, g @ lane.d
    return (f <= lane.f + 1e-4 * lane.t * before) | ((after <= -0.8 * before) & (f <= lane.f + 1e-6 * jnp.abs(lane.f)))


def _shorten(lane: Lane, g) -> Lane:
    """To where the slope, taken as linear along the step, is zero; a step too short to change anything ends the
    search.
    """
    before, after = lane.g @ lane.d, g @ lane.d
    t = lane.t * jnp.clip(before / (before - after), 0.1, 0.5)
    return lane._replace(t=t, done=lane.done | ~(t > 1e-8))


def _accept(lane: Lane, f, g, *, tolerance) -> Lane:
    s, y = lane.t * lane.d, g - lane.g
    keep = s @ y > 1e-10 * (y @ y)  # curvature that rounding has not eaten

    def push(past, new):
        return jnp.where(keep, jnp.concatenate([past[1:], new[None]]), past)

    lane = lane._replace(
        x=lane.x + s,
        f=f,
        g=g,
        t=jnp.ones_like(lane.t),
        s=push(lane.s, s),
        y=push(lane.y, y),
        rho=push(lane.rho, 1 / jnp.where(keep, s @ y, 1)),
    )
    return lane._replace(d=_direction(lane), done=jnp.abs(g).max() <= tolerance)


def _direction(lane: Lane):
    """Minus the inverse Hessian's estimate times the gradient: the two-loop recursion (algorithm 7.4)."""

    def down(q, past):
        s, y, rho = past
        a = rho * (s @ q)
        return q - a * y, a

    q, alphas = lax.scan(down, lane.g, (lane.s, lane.y, lane.rho), reverse=True)
    s, y = lane.s[-1], lane.y[-1]
    scale = jnp.where(lane.rho[-1] > 0, (s @ y) / jnp.maximum(y @ y, 1e-30), 1.0)

    def up(q, past):
        s, y, rho, a = past
        return q + (a - rho * (y @ q)) * s, None

    return -lax.scan(up, scale * q, (lane.s, lane.y, lane.rho, alphas))[0]
