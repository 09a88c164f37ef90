"""What contrastive losses need of the matrix of all pairs, without the matrix: sums over its rows and columns.

    statistics   log-sum-exps and sums of the logits along rows and columns (softmax losses): a loss is then a formula of vectors
    pair_sum     the sum over all pairs of a logistic loss of each (sigmoid losses)
    nearest      of every row the row most like it, of a set with itself (KoLeo)
    column_products   the sum of squares of all products of columns, by those of rows (Barlow Twins, VICReg)

All are differentiable functions of global arrays. Gradients are formed blockwise too, by a `custom_vjp` that stands outside of
`shard_map`, so no collective is ever transposed. With M = 2 N M' D FLOPs of one matrix of logits (N x M' pairs, width D):

    statistics   4 M with the gradients of both sides; 3 M where the logits are kept; 2 M where y is constant and one row of
                 log-sum-exps is all that is asked (a queue of keys); half of each where a set is paired with itself
    pair_sum     3 M: its gradient needs nothing that the first visit does not know
    nearest      2 M: the second visit adds up, with ones and zeros, what comes back to a row from those that it is nearest to
    column_products   2 M for a set with itself, 4 M for two, in one visit
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from ssljax import sharding
from ssljax.errors import UserError
from ssljax.losses import streaming

KEEP_BYTES = 64 * 2**20  # impl="auto" keeps the logits if a device's share of them, in float32, is no larger
CPU_KEEP_BYTES = 2**30  # or, on CPUs, if all of them are: there is memory enough, and a product in four is saved
IMPLEMENTATIONS = ("auto", "dense", "stream", "grid")


def check_impl(impl):
    """Raises UserError unless `impl` is one of IMPLEMENTATIONS."""
    if impl not in IMPLEMENTATIONS:
        raise UserError(f"impl={impl!r}: expected one of {', '.join(map(repr, IMPLEMENTATIONS))}")


# ------------------------------------------------------------------------------------------------------------- one block
def dot(x, y, contract=(1, 1)):
    """Matrix product over axis contract[0] of x and contract[1] of y: in full precision for float32, bfloat16 summed in float32."""
    low = x.dtype == y.dtype == jnp.bfloat16
    if not low:
        wide = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
        x, y = x.astype(wide), y.astype(wide)
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    precision = None if low else lax.Precision.HIGHEST
    return lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32 if low else x.dtype)


def slope_dot(g, z, contract):
    """Matrix product of a block's slopes g, float32, and encodings. On accelerators g is cast down to bfloat16 encodings' dtype, and
    only here, when all that stands in the block has been summed; a CPU has no bfloat16 products to gain by it."""
    if z.dtype == g.dtype:
        return dot(g, z, contract)
    lower = lambda g, z: dot(g.astype(z.dtype), z, contract)  # noqa: E731
    return lax.platform_dependent(g, z, cpu=lambda g, z: dot(g, z, contract), default=lower)


# Which pairs: masks of a block, from the attributes of its rows a (along axis 0) and b (along axis 1).
MASKS = {
    "all": lambda a, b: None,
    "same": lambda a, b: a["id"][:, None] == b["id"][None, :],  # row i of one side and row i of the other
    "others": lambda a, b: a["id"][:, None] != b["id"][None, :],
    "matches": lambda a, b: a["label"][:, None] == b["label"][None, :],
    "positives": lambda a, b: (a["label"][:, None] == b["label"][None, :]) & (a["id"][:, None] != b["id"][None, :]),
    "negatives": lambda a, b: a["label"][:, None] != b["label"][None, :],
}


def _mask(name, a, b, fresh):
    mask = MASKS[name](a, b)
    return fresh if mask is None else mask if fresh is None else mask & fresh


def _where(mask, value, otherwise):
    return value if mask is None else jnp.where(mask, value, otherwise)


class LogSumExp(typing.NamedTuple):
    """scale * max + log_sum, apart: that is what keeps small losses exact. max 0 and log_sum 0 where there are no logits.

    log_sum carries the whole derivative; scale and max pass for constants.
    """

    max: typing.Any
    log_sum: typing.Any
    scale: typing.Any

    def over(self, similarity):
        """-log( exp(scale * similarity) / sum exp ). The difference first: it is exactly 0 where the maximum is the positive."""
        return self.scale * (self.max - similarity) + self.log_sum

    @property
    def value(self):
        return self.scale * self.max + self.log_sum


# Statistics are of similarities u = sign(scale) x . y; exp(|scale| (u - max)) is exactly 1 at the maximum, in the first visit as
# in the second, which exp(scale x . y - max) is not once a compiler contracts it into a fused multiply-add.
def _finite(largest):
    """A maximum of nothing yet, -inf, as a number: exp(-inf - finite) is 0, where exp(-inf - -inf) is nan."""
    return jnp.maximum(largest, jnp.finfo(largest.dtype).min)


class _Exponentials:
    """What `lse` and `expected` share: sums of exponentials relative to a running maximum."""

    sums = ("sum",)

    @property
    def state(self):
        return {"max": -jnp.inf, **dict.fromkeys(self.sums, 0.0)}

    def rescaled(self, state, largest, factor):
        old = jnp.exp(factor * (state["max"] - _finite(largest)))
        return {name: state[name] * old for name in self.sums}

    def combine(self, p, q, scale):
        factor = self.factor(scale)
        largest = jnp.maximum(p["max"], q["max"])
        p, q = self.rescaled(p, largest, factor), self.rescaled(q, largest, factor)
        return {"max": largest, **{name: p[name] + q[name] for name in self.sums}}


@dataclasses.dataclass(frozen=True)
class lse(_Exponentials):
    """Statistic: log sum exp of the logits of a row (or column) where the mask holds."""

    mask: str

    def factor(self, scale):
        return scale

    def update(self, state, u, scale, a, b, fresh, axis):
        u = _where(_mask(self.mask, a, b, fresh), u, -jnp.inf)
        largest = jnp.maximum(state["max"], u.max(axis))
        sums = jnp.exp(scale * (u - jnp.expand_dims(_finite(largest), axis))).sum(axis)
        return {"max": largest, "sum": self.rescaled(state, largest, scale)["sum"] + sums}

    def finish(self, state, scale):
        some = state["sum"] > 0
        log_sum = jnp.where(some, jnp.log(jnp.where(some, state["sum"], 1.0)), 0.0)
        return LogSumExp(jnp.where(some, state["max"], 0.0), log_sum, scale)

    def weights(self, state, cotangent, scale):
        """What `gradient` needs of a row: its maximum, and the loss's slope in its log-sum-exp over its sum."""
        some = state["sum"] > 0
        slope = jnp.where(some, cotangent.log_sum / jnp.where(some, state["sum"], 1.0), 0.0)
        return {"max": jnp.where(some, state["max"], 0.0), "slope": slope}

    def gradient(self, weights, u, scale, a, b, fresh, axis):
        """The loss's slope in every logit of the block."""
        e = jnp.exp(scale * (u - jnp.expand_dims(weights["max"], axis))) * jnp.expand_dims(weights["slope"], axis)
        return _where(_mask(self.mask, a, b, fresh), e, 0.0)


@dataclasses.dataclass(frozen=True)
class total:
    """Statistic: sum of the similarities of a row (or column) where the mask holds. Times the scale it is a sum of logits, and its
    derivative is that of this sum over the scale as a constant (`LogSumExp.over` multiplies by the same constant)."""

    mask: str
    state = {"sum": 0.0}

    def update(self, state, u, scale, a, b, fresh, axis):
        return {"sum": state["sum"] + jnp.where(_mask(self.mask, a, b, fresh), u, 0.0).sum(axis)}

    def combine(self, p, q, scale):
        return {"sum": p["sum"] + q["sum"]}

    def finish(self, state, scale):
        return state["sum"]

    def weights(self, state, cotangent, scale):
        return {"slope": cotangent / scale}

    def gradient(self, weights, u, scale, a, b, fresh, axis):
        return jnp.where(_mask(self.mask, a, b, fresh), jnp.expand_dims(weights["slope"], axis), 0.0)


@dataclasses.dataclass(frozen=True)
class count(total):
    """Statistic: how many pairs of a row (or column) the mask holds for. Constant."""

    def update(self, state, u, scale, a, b, fresh, axis):
        mask = jnp.broadcast_to(_mask(self.mask, a, b, fresh), u.shape)
        return {"sum": state["sum"] + mask.sum(axis, dtype=u.dtype)}

    def gradient(self, weights, u, scale, a, b, fresh, axis):
        return 0.0


@dataclasses.dataclass(frozen=True)
class expected(_Exponentials):
    """Statistic: sum over a row (or column) of softmax(teacher's logits) * similarity, where the teacher's logits are u @ v.T of a
    second pair of encodings, `statistics(teacher=(u, v))`. Differentiated like `total`."""

    sums = ("sum", "dot")

    def factor(self, scale):
        return 1.0  # the teacher's scale is in its encodings

    def update(self, state, u, scale, a, b, fresh, axis):
        t = _where(fresh, dot(a["teacher"], b["teacher"]), -jnp.inf)
        largest = jnp.maximum(state["max"], t.max(axis))
        old, e = self.rescaled(state, largest, 1.0), jnp.exp(t - jnp.expand_dims(_finite(largest), axis))
        return {"max": largest, "sum": old["sum"] + e.sum(axis), "dot": old["dot"] + (e * u).sum(axis)}

    def finish(self, state, scale):
        return state["dot"] / state["sum"]

    def weights(self, state, cotangent, scale):
        slope = cotangent / state["sum"]
        return {"max": state["max"], "slope": slope / scale, "teacher_slope": slope, "mean": state["dot"] / state["sum"]}

    def _weighted(self, slope, weights, a, b, fresh, axis):
        t = dot(a["teacher"], b["teacher"])
        return _where(fresh, jnp.exp(t - jnp.expand_dims(weights["max"], axis)) * jnp.expand_dims(slope, axis), 0.0)

    def gradient(self, weights, u, scale, a, b, fresh, axis):
        return self._weighted(weights["slope"], weights, a, b, fresh, axis)

    def teacher_gradient(self, weights, u, a, b, fresh, axis):
        """The slope in the teacher's logits: softmax(t) * (similarity - expected similarity)."""
        return self._weighted(weights["teacher_slope"], weights, a, b, fresh, axis) * (u - jnp.expand_dims(weights["mean"], axis))


# ------------------------------------------------------------------------------------------------------------ statistics
def statistics(x, y, scale, *, rows, columns=(), labels=None, teacher=None, impl="auto"):
    """Statistics of logits = scale * x @ y.T, without holding them. -> list for the rows, list for the columns.

    x: (N, D). y: (M, D), or None for x with itself, where the matrix is symmetric and only `rows` are asked for; x may then be a
    tuple of V views of N examples, and the statistics are of its V N rows in no promised order. scale: not 0.
    rows, columns: tuples of `lse`, `total`, `count`, each of a mask of MASKS, and `expected`. labels: int (N,) or a pair of
    them, (N,) and (M,), for masks that compare labels. teacher: (N, E), (M, E) for `expected`. Rows are numbered 0, 1, ...
    on each side. Gradients flow into x, y, scale and teacher. Raises UserError where the devices do not divide N and M.
    """
    check_impl(impl)
    half = y is None
    views = x if isinstance(x, tuple) else (x,)
    n, d = views[0].shape
    layout = streaming.layout_of(*views, y)
    streaming.check_divides(layout, **({"a batch": n} if half else {"x": n, "y": len(y)}))
    devices = layout.size if layout else 1
    if half and devices % 2 == 0 and n // devices % 2:
        if len(views) > 1:  # one set of an even number of rows on each device
            z = jnp.stack(views, axis=1).reshape(-1, d)
            return statistics(z, None, scale, rows=rows, labels=jnp.repeat(labels, len(views)), impl=impl)
        y, columns, half = x, (), False  # half a ring wants halves of equal size: here the whole matrix is formed
    xl, yl = labels if isinstance(labels, tuple) else (labels, labels)
    own = tuple(_attributes(n, xl, view) for view in range(len(views)))
    visit = None if half else _attributes(len(y), yl)
    rows_all = n * len(views)
    keep, schedule = choose(impl, rows_all, rows_all if half else len(y), d, views[0].dtype, layout, half)
    plan = Plan(rows, columns, keep, schedule, half)
    scale = jnp.asarray(scale, _wide(views[0]))
    return _statistics(plan, views, None if half else y, scale, teacher, own, visit)


def _attributes(length, labels, view=0):
    attributes = {"id": jnp.arange(length, dtype=jnp.int32) + view * length}
    return attributes if labels is None else {**attributes, "label": labels}


def choose(impl, n, m, d, dtype, layout, half):
    """-> whether the logits are kept, and `sweep`'s schedule. d: numbers of a row."""
    devices = layout.size if layout else 1
    logits = 4 * n * m // (2 if half else 1)
    keep = impl == "auto" and (logits // devices <= KEEP_BYTES or (sharding.platform() == "cpu" and logits <= CPU_KEEP_BYTES))
    if impl == "grid" and layout:
        return keep, layout.columns()
    if impl != "auto" or devices == 1 or half:
        return keep, 1
    # A ring is a matter of latency, and of what it sends: gather own rows, or as many as a grid can hold, where they and their
    # accumulators are no larger than kept logits may be anywhere.
    gathered = n // devices * d * (jnp.dtype(dtype).itemsize + 4)
    if devices * gathered <= KEEP_BYTES:
        return keep, "gather"
    return keep, layout.columns(KEEP_BYTES // gathered) if devices >= 16 else 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is static about a call of `statistics`."""

    rows: tuple
    columns: tuple
    keep: bool
    schedule: str | int
    half: bool

    def specs(self, stats):
        return {f"{i}/{name}": (value, ()) for i, stat in enumerate(stats) for name, value in stat.state.items()}

    @property
    def once(self):
        """Whether the first visit can form the gradient in x: log-sum-exps of rows, and logits of row i with column i."""
        first, *rest = self.rows
        return type(first) is lse and all(stat == total("same") for stat in rest) and not self.columns and not self.half

    def combine(self, p, q, scale):
        return _named(stat.combine(of(p, i), of(q, i), scale) for i, stat in enumerate(self.rows))


def of(states, i):
    """The entries of statistic i."""
    return {name.partition("/")[2]: value for name, value in states.items() if name.startswith(f"{i}/")}


def _named(parts):
    """The states of statistics 0, 1, ... -> one dict, "0/max", "0/sum", ..."""
    return {f"{i}/{name}": value for i, part in enumerate(parts) for name, value in part.items()}


def update(stats, states, *block):
    """Every statistic with one block more."""
    return _named(stat.update(of(states, i), *block) for i, stat in enumerate(stats))


def weights(stats, states, slopes, size):
    """What `gradient` needs of every statistic's rows, by the loss's slopes in what the statistics say."""
    return _named(stat.weights(of(states, i), slope, size) for i, (stat, slope) in enumerate(zip(stats, slopes, strict=True)))


def finish(stats, states, scale):
    """States, for a tuple of views one of each -> what the statistics say, the views' rows one after the other."""
    states = states if isinstance(states, tuple) else (states,)
    scale = jnp.abs(scale)
    each = [[stat.finish(of(view, i), scale) for i, stat in enumerate(stats)] for view in states]
    return each[0] if len(each) == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts) if parts[0].ndim else parts[0], *each)


def _wide(x):
    return jnp.promote_types(x.dtype, jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _statistics(plan, views, y, scale, teacher, own, visit):
    rows, columns, _ = _visit_logits(plan, _sides(plan, views, y, teacher, own, visit), scale, keep=False)
    return finish(plan.rows, rows, scale), finish(plan.columns, columns, scale)


def _sides(plan, views, y, teacher, own, visit, own_weights=None, visit_weights=None):
    """What the blocks see of the rows and of the columns: encodings, numbers, labels, the teacher's encodings, gradients' weights."""
    u, v = teacher if teacher is not None else (None, None)
    given = lambda **parts: {name: part for name, part in parts.items() if part is not None}  # noqa: E731
    own_weights = own_weights or [None] * len(views)
    rows = tuple(given(z=z, teacher=u, weights=w, **o) for z, o, w in zip(views, own, own_weights, strict=True))
    rows = rows if len(rows) > 1 else rows[0]
    return rows, None if plan.half else given(z=y, teacher=v, weights=visit_weights, **visit)


def _sweep(plan, block, sides, scale, rows, columns, **options):
    """A sweep of this plan. Blocks get the similarities' factors ready: shared["sign"], shared["scale"] = |scale|."""
    options |= {} if plan.half else {"schedule": plan.schedule}
    one = sides[0][0] if isinstance(sides[0], tuple) else sides[0]
    shared = {"sign": jnp.sign(scale), "scale": jnp.abs(scale)}
    return streaming.sweep(block, shared, *sides, rows, columns, dtype=_wide(one["z"]), **options)


def _visit_logits(plan, sides, scale, keep):
    def block(shared, a, b, row, column, fresh, kept):
        products = dot(a["z"], b["z"])
        seen = (shared["sign"] * products, shared["scale"], a, b, fresh)
        if column is not None:
            column = update(plan.rows if plan.half else plan.columns, column, *seen, 0)
        return update(plan.rows, row, *seen, 1), column, products if keep else None

    def combine(shared, p, q):
        return plan.combine(p, q, shared["scale"])

    return _sweep(plan, block, sides, scale, plan.specs(plan.rows), plan.specs(plan.columns), combine=combine)


def _statistics_forward(plan, *args):
    wanted = [any(leaf.perturbed for leaf in jax.tree.leaves(arg, is_leaf=_primal)) for arg in args]
    wants = {name: () for name, yes in zip(("x", "y", "scale", "teacher"), wanted, strict=False) if yes}  # keys, so that they are static
    views, y, scale, teacher, own, visit = jax.tree.map(lambda leaf: leaf.value, args, is_leaf=_primal)
    sides = _sides(plan, views, y, teacher, own, visit)
    residuals = {"inputs": (views, y, scale, teacher, own, visit), "wants": wants}
    if plan.once and "y" not in wants:
        rows, residuals["mean"] = _visit_once(plan, sides, scale)
        columns = {}
    else:
        rows, columns, residuals["kept"] = _visit_logits(plan, sides, scale, keep=plan.keep)
    residuals |= {"rows": rows, "columns": columns}
    return (finish(plan.rows, rows, scale), finish(plan.columns, columns, scale)), residuals


def _primal(leaf):
    return hasattr(leaf, "perturbed")


def _visit_once(plan, sides, scale):
    """The statistics of the rows together with the gradient of their log-sum-exp, the softmax-weighted mean of y (N, D): the sum
    is rescaled whenever the maximum rises, as in FlashAttention (Dao et al. 2022, Algorithm 1)."""
    stat, x = plan.rows[0], sides[0]["z"]

    def rescaled(row, largest, scale):
        return row["mean"] * jnp.exp(scale * (row["0/max"] - _finite(largest)))[:, None]

    def block(shared, a, b, row, column, fresh, kept):
        u, scale = shared["sign"] * dot(a["z"], b["z"]), shared["scale"]
        new = update(plan.rows, row, u, scale, a, b, fresh, 1)
        e = jnp.exp(scale * (u - _finite(new["0/max"])[:, None]))
        e = _where(_mask(stat.mask, a, b, fresh), e, 0.0)
        return new | {"mean": rescaled(row, new["0/max"], scale) + slope_dot(e, b["z"], (1, 0))}, column, None

    def combine(shared, p, q):
        both = plan.combine(p, q, shared["scale"])
        return both | {"mean": sum(rescaled(part, both["0/max"], shared["scale"]) for part in (p, q))}

    specs = plan.specs(plan.rows) | {"mean": (0.0, (x.shape[1],))}
    rows, _, _ = _sweep(plan, block, sides, scale, specs, {}, combine=combine)
    mean = rows.pop("mean")
    return rows, mean / jnp.where(rows["0/sum"] > 0, rows["0/sum"], 1.0)[:, None]


def _statistics_backward(plan, residuals, cotangents):
    (views, y, scale, teacher, own, visit), wants = residuals["inputs"], residuals["wants"]
    zero = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, SymbolicZero) else leaf  # noqa: E731
    row_slopes, column_slopes = jax.tree.map(zero, cotangents, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))
    size = jnp.abs(scale)
    if "mean" in residuals:
        dx = row_slopes[0].log_sum[:, None] * residuals["mean"]  # (N, D)
        for slope in row_slopes[1:]:  # totals of "same": row i of y
            dx = dx + (jnp.sign(scale) * slope / size)[:, None] * y
        return ((scale * dx).astype(views[0].dtype),), None, jnp.sum(views[0] * dx), None, None, None

    def block(shared, a, b, row, column, fresh, products):
        products = dot(a["z"], b["z"]) if products is None else products
        u = shared["sign"] * products
        sides = ((a, 1, plan.rows), (b, 0, plan.rows if plan.half else plan.columns))
        each = [(stat, of(side["weights"], i), axis) for side, axis, stats in sides for i, stat in enumerate(stats)]
        g = sum(stat.gradient(w, u, shared["scale"], a, b, fresh, axis) for stat, w, axis in each)
        row, column = _gradients(g, products, a, b, row, column)
        if "teacher" in row:
            g = sum(stat.teacher_gradient(w, u, a, b, fresh, axis) for stat, w, axis in each if isinstance(stat, expected))
            row = row | {"teacher": row["teacher"] + dot(g, b["teacher"], (1, 0))}
            column = column | {"teacher": column["teacher"] + dot(g, a["teacher"], (0, 0))}
        return row, column, None

    states = residuals["rows"] if isinstance(residuals["rows"], tuple) else (residuals["rows"],)
    of_view = [jax.tree.map(lambda s, k=k: jnp.split(s, len(views))[k] if s.ndim else s, row_slopes) for k in range(len(views))]
    row_weights = [weights(plan.rows, state, slopes, size) for state, slopes in zip(states, of_view, strict=True)]
    column_weights = weights(plan.columns, residuals["columns"], column_slopes, size)
    taught = [{"teacher": (0.0, (t.shape[1],))} for t in teacher] if "teacher" in wants else [{}, {}]
    rows, columns, _ = _sweep(
        plan,
        block,
        _sides(plan, views, y, teacher, own, visit, row_weights, column_weights),
        scale,
        _gradient_specs(views[0], "x" in wants, "scale" in wants) | taught[0],
        {} if plan.half else _gradient_specs(y, "y" in wants, False) | taught[1],
        kept=residuals["kept"],
    )
    parts = rows if isinstance(rows, tuple) else (rows,)
    dx = tuple((scale * part["z"]).astype(views[0].dtype) for part in parts) if "x" in wants else None
    dy = (scale * columns["z"]).astype(y.dtype) if "y" in wants else None
    dscale = sum(_scale_slope(view, part, plan.half) for view, part in zip(views, parts, strict=True)) if "scale" in wants else None
    dteacher = (rows["teacher"].astype(teacher[0].dtype), columns["teacher"].astype(teacher[1].dtype)) if "teacher" in wants else None
    return dx, dy, dscale, dteacher, None, None


def _gradient_specs(z, wanted, scale):
    """Accumulators of a side's gradient. The scale's is in it: sum g x . y = sum x . (g y) (`_scale_slope`); sums of its own, over every
    block once more, only where this side has none."""
    return {"z": (0.0, (z.shape[1],))} if wanted else {"products": (0.0, ())} if scale else {}


def _scale_slope(x, row, half=False):
    """The slope in the scale, of what was gathered for the rows. A set with itself has every pair in two rows."""
    return jnp.sum(x * row["z"]) / (2 if half else 1) if "z" in row else jnp.sum(row["products"])


def _gradients(g, products, a, b, row, column):
    """Accumulate the gradients of both sides from g (n, m), the slope in every logit."""
    if "products" in row:
        diagonal = 0.5 if column is None else 1.0  # a block of a set with itself holds each pair both ways round
        row = row | {"products": row["products"] + diagonal * jnp.sum(g * products, axis=1)}
    if "z" in row:
        row = row | {"z": row["z"] + slope_dot(g, b["z"], (1, 0))}
    if column and "z" in column:
        column = column | {"z": column["z"] + slope_dot(g, a["z"], (0, 0))}
    return row, column


_statistics.defvjp(_statistics_forward, _statistics_backward, symbolic_zeros=True)


# -------------------------------------------------------------------------------------------------------------- pair_sum
def pair_sum(x, y, scale, offset, *, positives="same", count="all", labels=None, targets=None, impl="auto"):
    """Sum over pairs of a logistic loss of each, l = scale * x_i . y_j + offset_i. -> scalar.

    Pairs where the mask `positives` holds give softplus(-l), the others softplus(l) if count="all" and nothing if "positives".
    targets: (N, K), (M, K) of soft labels; a pair then gives softplus(l) - t l, t = targets_i . targets_j (constant).
    x: (N, D), y: (M, D). offset: scalar or (N,). Gradients flow into x, y, scale and offset, and are formed in the first visit;
    where none is asked for, only the loss is computed. Raises UserError where the devices do not divide N and M.
    """
    check_impl(impl)
    xl, yl = labels if isinstance(labels, tuple) else (labels, labels)
    own, visit = _attributes(len(x), xl), _attributes(len(y), yl)
    if targets is not None:
        own, visit = own | {"target": targets[0]}, visit | {"target": targets[1]}
    layout = streaming.layout_of(x, y)
    streaming.check_divides(layout, x=len(x), y=len(y))
    _, schedule = choose(impl, len(x), len(y), x.shape[1], x.dtype, layout, half=False)
    scale, offset = jnp.asarray(scale, _wide(x)), jnp.asarray(offset, _wide(x))
    plan = PairPlan(positives if targets is None else None, count, schedule, offset.ndim == 0, (x.dtype, y.dtype))
    return _pair_sum(plan, x, y, scale, offset, own, visit)


@dataclasses.dataclass(frozen=True)
class PairPlan:
    """What is static about a call of `pair_sum`. positives: the mask, or None for soft targets."""

    positives: str | None
    count: str
    schedule: str | int
    one_offset: bool
    dtypes: tuple  # of x and y

    def losses(self, logits, a, b, fresh):
        """-> loss of each pair, its slope in the logit. softplus(z) = max(z, 0) + log1p(exp(-|z|)), its slope from the same exp."""
        mask = None if self.positives is None else MASKS[self.positives](a, b)
        z = logits if mask is None else jnp.where(mask, -logits, logits)
        e = jnp.exp(-jnp.abs(z))
        loss, slope = jnp.maximum(z, 0.0) + jnp.log1p(e), jnp.where(z >= 0, 1.0, e) / (1.0 + e)
        if mask is None:
            target = dot(a["target"], b["target"])
            loss, slope = loss - target * logits, slope - target
        else:
            slope = jnp.where(mask, -slope, slope)
        counted = fresh if self.count == "all" else mask if fresh is None else mask & fresh
        return _where(counted, loss, 0.0), _where(counted, slope, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pair_sum(plan, x, y, scale, offset, own, visit):
    rows, _ = _visit_pairs(plan, x, y, scale, offset, own, visit, wants=())
    return jnp.sum(rows["loss"])


def _visit_pairs(plan, x, y, scale, offset, own, visit, wants):
    def block(shared, a, b, row, column, fresh, kept):
        products = dot(a["z"], b["z"])
        loss, g = plan.losses(shared["scale"] * products + a["offset"][:, None], a, b, fresh)
        row = row | {"loss": row["loss"] + loss.sum(1)}
        if "offset" in row:
            row = row | {"offset": row["offset"] + g.sum(1)}
        return *_gradients(g, products, a, b, row, column), None

    rows = {"loss": (0.0, ())} | ({"offset": (0.0, ())} if "offset" in wants else {})
    rows, columns, _ = streaming.sweep(
        block,
        {"scale": scale},
        {"z": x, "offset": jnp.broadcast_to(offset, (len(x),)), **own},
        {"z": y, **visit},
        rows | _gradient_specs(x, "x" in wants, "scale" in wants),
        _gradient_specs(y, "y" in wants, False),
        schedule=plan.schedule,
        dtype=_wide(x),
    )
    return rows, columns


def _pair_sum_forward(plan, *args):
    wants = [name for name, leaf in zip(("x", "y", "scale", "offset"), args, strict=False) if leaf.perturbed]
    x, y, scale, offset, own, visit = jax.tree.map(lambda leaf: leaf.value, args, is_leaf=_primal)
    rows, columns = _visit_pairs(plan, x, y, scale, offset, own, visit, wants)
    # In place of the inputs, their gradients, as they were summed: to be rounded once.
    gradients = {"x": rows.get("z"), "y": columns.get("z"), "offset": rows.get("offset")}
    gradients["scale"] = _scale_slope(x, rows) if "scale" in wants else None
    return jnp.sum(rows["loss"]), (gradients, scale)


def _pair_sum_backward(plan, residuals, cotangent):
    gradients, scale = residuals
    times = lambda factor, name: None if gradients[name] is None else factor * gradients[name]  # noqa: E731
    dx, dy = times(cotangent * scale, "x"), times(cotangent * scale, "y")
    dx, dy = (None if g is None else g.astype(dtype) for g, dtype in zip((dx, dy), plan.dtypes, strict=True))
    dscale = times(cotangent, "scale")
    doffset = times(cotangent, "offset")
    return dx, dy, dscale, jnp.sum(doffset) if plan.one_offset and doffset is not None else doffset, None, None


_pair_sum.defvjp(_pair_sum_forward, _pair_sum_backward, symbolic_zeros=True)


# --------------------------------------------------------------------------------------------------------------- nearest
def nearest(z, impl="auto"):
    """Of every row the other row of greatest inner product, the first of several: z (N, D) -> (N, D), z's dtype.

    Gradients flow into the rows that were found, not through the choice. Raises UserError where the devices do not divide N.
    """
    check_impl(impl)
    layout = streaming.layout_of(z)
    streaming.check_divides(layout, z=len(z))
    return _nearest(choose(impl, len(z), len(z), z.shape[1], z.dtype, layout, half=False)[1], z)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _nearest(schedule, z):
    return _visit_nearest(schedule, z)[0]


def _better(p, q):
    """Where q's row comes before p's: it is nearer, or as near and earlier."""
    return (q["max"] > p["max"]) | ((q["max"] == p["max"]) & (q["id"] < p["id"]))


def _visit_nearest(schedule, z):
    def combine(shared, p, q):
        better = _better(p, q)
        return {name: jnp.where(better.reshape(-1, *[1] * (p[name].ndim - 1)), q[name], p[name]) for name in p}

    def block(shared, a, b, row, column, fresh, kept):
        u = _where(_mask("others", a, b, fresh), dot(a["z"], b["z"]), -jnp.inf)
        at = u.argmax(1)
        found = {"max": u.max(1), "id": b["id"][at].astype(row["id"].dtype), "z": b["z"][at].astype(row["z"].dtype)}
        return combine(shared, row, found), column, None

    sides = ({"z": z, **_attributes(len(z), None)},) * 2
    specs = {"max": (-jnp.inf, ()), "id": (jnp.inf, ()), "z": (0.0, (z.shape[1],))}  # float32 holds numbers of rows up to 2^24
    rows, _, _ = streaming.sweep(block, {}, *sides, specs, {}, combine=combine, schedule=schedule, dtype=_wide(z))
    return rows["z"].astype(z.dtype), rows["id"]


def _nearest_backward(schedule, found, cotangent):
    def block(shared, a, b, row, column, fresh, kept):
        chosen = _where(fresh, a["found"][:, None] == b["id"][None, :].astype(a["found"].dtype), False)
        return row, column | {"z": column["z"] + dot(chosen.astype(a["z"].dtype), a["z"], (0, 0))}, None

    own, visit = {"z": cotangent, "found": found}, _attributes(len(found), None)
    gathered = {"z": (0.0, (cotangent.shape[1],))}
    _, columns, _ = streaming.sweep(block, {}, own, visit, {}, gathered, schedule=schedule, dtype=_wide(cotangent))
    return (columns["z"].astype(cotangent.dtype),)


_nearest.defvjp(_visit_nearest, _nearest_backward)


# ------------------------------------------------------------------------------------------------------- column_products
def column_products(x, y=None, impl="auto"):
    """sum_cd (sum_i x_ic y_id)^2, the squares of the products of all columns of x with all of y, or of x with itself. -> scalar.

    By the products of rows, sum_ij (x_i . x_j) (y_i . y_j), so that no matrix of columns is formed or summed over devices: cheaper where
    rows are fewer than columns. x: (N, D). y: (N, E). Gradients flow into both, and are formed in the same visit. Raises UserError
    where the devices do not divide N.
    """
    check_impl(impl)
    layout = streaming.layout_of(x)
    streaming.check_divides(layout, **{"a batch": len(x)})
    both = {"x": x} if y is None else {"x": x, "y": y}
    width = sum(z.shape[1] for z in both.values())
    return _column_products(choose(impl, len(x), len(x), width, x.dtype, layout, half=False)[1], both)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _column_products(schedule, both):
    return jnp.sum(_visit_rows(schedule, both, wants=False)["sum"])


def _visit_rows(schedule, both, wants):
    def block(shared, a, b, row, column, fresh, kept):
        products = {name: _where(fresh, dot(a[name], b[name]), 0.0) for name in a}
        found = {"sum": row["sum"] + (products["x"] * products.get("y", products["x"])).sum(1)}
        if wants:  # the slope in one side's product of two rows is the other side's
            slopes = {"x": products.get("y", products["x"]), "y": products["x"]}
            found |= {name: row[name] + slope_dot(slopes[name], b[name], (1, 0)) for name in a}
        return found, column, None

    specs = {"sum": (0.0, ())} | ({name: (0.0, (z.shape[1],)) for name, z in both.items()} if wants else {})
    return streaming.sweep(block, {}, both, both, specs, {}, schedule=schedule, dtype=_wide(both["x"]))[0]


def _column_products_forward(schedule, both):
    rows = _visit_rows(schedule, both, wants=True)
    times = 4.0 / len(both)  # each pair of rows is there both ways round; of a set with itself both sides are x
    slopes = {name: times * rows[name] for name in both}
    return jnp.sum(rows["sum"]), (slopes, jax.tree.map(lambda z: jnp.zeros((0,), z.dtype), both))


def _column_products_backward(schedule, residuals, cotangent):
    slopes, like = residuals
    return ({name: (cotangent * slope).astype(like[name].dtype) for name, slope in slopes.items()},)


_column_products.defvjp(_column_products_forward, _column_products_backward)
