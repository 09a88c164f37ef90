"""The one engine behind every loss over pairs: it visits each pair of rows once, a block at a time, on any mesh.

`sweep` calls `block` on blocks of pairs and never holds more of the matrix than one of them. Every device keeps its own
rows; the other side's rows travel, together with what is being accumulated for them, and come home complete:

    ring   the visiting rows go once round all devices, in two halves that take turns: while one half is computed on,
           the other is under way. Memory of a device: 1.5 times its share of the visiting rows and of their accumulators.
    grid   devices form R x C; own rows are first gathered along C, the visitors then ring through R. Each device sends
           about (R + C) / P of what the ring sends, and holds C times the rows.
    gather one all-gather of own rows and one reduce-scatter of what was gathered for them: for batches of which a device can
           hold all encodings, the fewest messages.
    half   own rows against themselves: pair (i, j) is also pair (j, i), so blocks below the diagonal are never formed
           and the ring turns half way round.

A method never sees any of this: arrays are global, and the mesh is that of `jax.set_mesh`, or else of the arrays.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ssljax import sharding
from ssljax.errors import UserError

BLOCK = 512  # rows of a block: its logits take 1 MiB
SETS_BLOCK = 2048  # vectors of a block whose rows are sets of them: few rows, and what is made of 16 MiB of products is small
GPU_BLOCK = 8192  # on a GPU, where a block is several kernels, and a small one is over before the next is launched
REPLICATED_AXIS = "tensor"  # the one mesh axis that a batch is not split over


# -------------------------------------------------------------------------------------------------------------- devices
@dataclasses.dataclass(frozen=True)
class Layout:
    """The devices that a batch is split over: a mesh and those of its axes. size: how many they are."""

    mesh: object
    axes: tuple

    @property
    def size(self):
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    def columns(self, most=None):
        """C of a grid of R x C devices: the largest divisor of their number not above its root, nor above `most` where that is given."""
        most = min(math.isqrt(self.size), self.size if most is None else most)
        return max([1] + [c for c in range(2, most + 1) if self.size % c == 0])

    def index(self):
        return lax.axis_index(self.axes)

    def send(self, tree, target):
        """Every device's tree to device target(index)."""
        pairs = [(i, target(i)) for i in range(self.size)]
        return _as_few(tree, lambda a, axis: lax.ppermute(a, self.axes, pairs) if a.size else a)

    def gather(self, tree):
        """Every device's rows on every device, in the devices' order."""
        return _as_few(tree, lambda a, axis: lax.all_gather(a, self.axes, axis=axis, tiled=True))

    def scatter(self, tree, combine):
        """What every device has for all devices' rows, combined at their owners."""
        if combine is None:  # sums
            return jax.tree.map(lambda a: lax.psum_scatter(a, self.axes, tiled=True), tree)
        parts = _as_few(tree, lambda a, axis: lax.all_to_all(a, self.axes, axis, axis, tiled=True))
        parts = jax.tree.map(lambda a: a.reshape(self.size, -1, *a.shape[1:]), parts)
        return functools.reduce(combine, [jax.tree.map(lambda a, k=k: a[k], parts) for k in range(self.size)])


def _as_few(tree, move):
    """move(array, axis of its rows) of every leaf, all vectors together as one: a collective is a rendezvous of all devices."""
    leaves, structure = jax.tree.flatten(tree)
    vectors = [i for i, leaf in enumerate(leaves) if leaf.ndim == 1 and leaf.dtype.itemsize == 4]
    if len(vectors) < 2:
        return jax.tree.unflatten(structure, [move(leaf, 0) for leaf in leaves])
    bits = jnp.stack([lax.bitcast_convert_type(leaves[i], jnp.int32) for i in vectors])
    moved = dict(zip(vectors, move(bits, 1), strict=True))
    out = [lax.bitcast_convert_type(moved[i], leaf.dtype) if i in moved else move(leaf, 0) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, out)


def layout_of(*arrays):
    """-> Layout, or None where there is one device, no mesh, or the caller is inside `shard_map` already."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        arrays = [a for a in arrays if isinstance(a, jax.Array)]
        traced = any(isinstance(a, jax.core.Tracer) for a in arrays)  # what is traced knows its devices' mesh, but not the devices
        placed = [jax.typeof(a).sharding if traced else a.sharding for a in arrays]
        meshes = [s.mesh for s in placed if isinstance(s, NamedSharding) and not s.mesh.empty]
        if not meshes:
            return None
        mesh = meshes[0]
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if AxisType.Manual in kinds.values():
        return None
    axes = tuple(axis for axis in mesh.axis_names if mesh.shape[axis] > 1 and axis != REPLICATED_AXIS)
    return Layout(mesh, axes) if axes else None


def check_divides(layout, **sizes):
    """Raises UserError unless the devices divide every number of rows."""
    for name, size in sizes.items():
        if layout is not None and size % layout.size:
            axes = ", ".join(f"{axis}={layout.mesh.shape[axis]}" for axis in layout.axes)
            raise UserError(
                f"{name}: {size} rows do not divide over the {layout.size} devices of {axes}; "
                f"take a batch of {max(size // layout.size, 1) * layout.size}, or another mesh"
            )


# --------------------------------------------------------------------------------------------------------------- blocks
class _Blocks:
    """The rows of a tree as blocks of one static size, at least so many; a block may have `times` as many rows as one usually has. The
    last one ends with the rows: where it overlaps the one before, its rows are not fresh, and count for nothing. A tuple of views shares a
    block, and so do the vectors of rows that are sets of them."""

    def __init__(self, tree, least=1, times=1):
        self.length = _length(tree)
        members = max(math.prod(leaf.shape[1:-1]) for leaf in jax.tree.leaves(tree))
        block = GPU_BLOCK if sharding.platform() == "gpu" else BLOCK if members == 1 else SETS_BLOCK
        self.most = times * max(block // (len(tree) if isinstance(tree, tuple) else 1) // members, 1)
        self.count = max(-(-self.length // self.most), min(least, self.length), 1)
        self.size = -(-self.length // self.count)

    @property
    def ragged(self):
        return self.length % self.size != 0

    def _start(self, i):
        start = i * self.size
        return jnp.minimum(start, self.length - self.size) if self.ragged else start

    def take(self, tree, i):
        return tree if self.count == 1 else jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, self._start(i), self.size), tree)

    def put(self, tree, part, i):
        if self.count == 1:
            return part
        return jax.tree.map(lambda a, b: lax.dynamic_update_slice_in_dim(a, b, self._start(i), 0), tree, part)

    def fresh(self, i):
        return self._start(i) + jnp.arange(self.size) >= i * self.size


def _fresh(rows, columns, i, j):
    """Which pairs of block (i, j) are new: bool broadcastable to the block, None for all."""
    masks = [rows.fresh(i)[:, None]] * rows.ragged + [columns.fresh(j)[None, :]] * columns.ragged
    return (masks[0] & masks[-1]) if masks else None


def _loop(body, carry, count, xs):
    """`lax.scan` of body(carry, i, x) over range(count), without a loop where there is nothing to loop over."""
    if count == 0:
        return carry, None
    if count == 1:
        carry, y = body(carry, 0, jax.tree.map(lambda a: a[0], xs))
        return carry, jax.tree.map(lambda a: a[None], y)
    return lax.scan(lambda c, ix: body(c, *ix), carry, (jnp.arange(count), xs))


def _length(tree):
    return jax.tree.leaves(tree)[0].shape[0]


def _blockwise(block, own, visit, rows, columns, kept, least=1):
    """Every pair of own and visit, whose rows are at least so many blocks. -> rows, columns, what the blocks put out."""
    if _length(visit) == 0:
        return rows, columns, None
    # Few visitors look at more rows at a time: what is accumulated for a block of rows is read and written for each block of visitors.
    j_blocks = _Blocks(visit, least)
    i_blocks = _Blocks(own, times=j_blocks.most // j_blocks.size)

    def row_block(carry, i, kept):
        rows, columns = carry
        a, row = i_blocks.take(own, i), i_blocks.take(rows, i)

        def pair(carry, j, kept):
            row, columns = carry
            b, column = j_blocks.take(visit, j), j_blocks.take(columns, j)
            row, column, out = block(a, b, row, column, _fresh(i_blocks, j_blocks, i, j), kept)
            return (row, j_blocks.put(columns, column, j)), out

        (row, columns), out = _loop(pair, (row, columns), j_blocks.count, kept)
        return (i_blocks.put(rows, row, i), columns), out

    (rows, columns), out = _loop(row_block, (rows, columns), i_blocks.count, kept)
    return rows, columns, out


def _blockwise_half(block, own, rows, kept):
    """Every unordered pair of own with itself; rows also gather what the columns would. -> rows, what the blocks put out."""
    blocks = _Blocks(own)
    kept_diagonal, kept_pairs = kept if kept is not None else (None, None)

    def diagonal(rows, i, kept):  # holds both (i, j) and (j, i), so its columns are left out
        a = blocks.take(own, i)
        row, _, out = block(a, a, blocks.take(rows, i), None, _fresh(blocks, blocks, i, i), kept)
        return blocks.put(rows, row, i), out

    rows, out_diagonal = _loop(diagonal, rows, blocks.count, kept_diagonal)
    above = [(i, j) for i in range(blocks.count) for j in range(i + 1, blocks.count)]
    if not above:
        return rows, (out_diagonal, None)
    first, second = jnp.asarray(above, jnp.int32).T
    following = jnp.append(first[1:], first[-1])

    def pair(carry, k, kept):
        rows, row = carry  # row: block i of rows. Read out of them here, beside block j, it would make XLA copy them all at each step.
        i, j = first[k], second[k]
        a, b, column = blocks.take(own, i), blocks.take(own, j), blocks.take(rows, j)
        row, column, out = block(a, b, row, column, _fresh(blocks, blocks, i, j), kept)
        # The later block first: of rows that both hold, only the earlier one's are up to date.
        rows = blocks.put(blocks.put(rows, column, j), row, i)
        row = jax.tree.map(lambda new, old: jnp.where(following[k] == i, old, new), blocks.take(rows, following[k]), row)
        return (rows, row), out

    (rows, _), out_pairs = _loop(pair, (rows, blocks.take(rows, first[0])), len(above), kept_pairs)
    return rows, (out_diagonal, out_pairs)


# -------------------------------------------------------------------------------------------------------------- schedules
def _halves(tree):
    if not tree:
        return tree, tree
    half = -(-_length(tree) // 2)
    return jax.tree.map(lambda a: a[:half], tree), jax.tree.map(lambda a: a[half:], tree)


def _joined(a, b):
    return jax.tree.map(lambda u, v: jnp.concatenate([u, v]), a, b)


def _travel(block, own, visit, rows, columns, kept, hops, send_a, send_b):
    """Visitors call at `hops` devices, leaving home first. -> rows, (a, its columns), (b, its columns), what blocks put out;
    a and b are the halves of the visitors, still where they called last."""
    kept = kept if kept is not None else (None, None, None)
    (a, b), (ca, cb) = _halves(visit), _halves(columns)
    a = send_a(a)
    rows, ca, out_first = _blockwise(block, own, a, rows, ca, kept[0])
    b = send_b(b)

    def hop(carry, _, kept):
        rows, a, ca, b, cb = carry
        kept_b, kept_a = kept if kept is not None else (None, None)
        moved = send_a((a, ca))  # under way while b is computed on
        rows, cb, out_b = _blockwise(block, own, b, rows, cb, kept_b)
        (a, ca), b, cb = lax.optimization_barrier((moved, b, cb))  # one collective at a time, in one order everywhere
        moved = send_b((b, cb))
        rows, ca, out_a = _blockwise(block, own, a, rows, ca, kept_a)
        b, cb = moved
        return (rows, a, ca, b, cb), (out_b, out_a)

    (rows, a, ca, b, cb), out_hops = _loop(hop, (rows, a, ca, b, cb), hops - 1, kept[1])
    rows, cb, out_last = _blockwise(block, own, b, rows, cb, kept[2])
    return rows, (a, ca), (b, cb), (out_first, out_hops, out_last)


def _ring(block, own, visit, rows, columns, kept, layout, grid):
    """The visitors' ring of length R in a grid of R x C devices (C = 1: the ring of all devices)."""
    length, width = grid
    if length == 1:
        return _blockwise(block, own, visit, rows, columns, kept)

    def send(by):
        return lambda tree: layout.send(tree, lambda i: (i // width + by) % length * width + i % width)

    kept_away, kept_home = kept if kept is not None else (None, None)
    rows, (_, ca), (_, cb), out_away = _travel(block, own, visit, rows, columns, kept_away, length - 1, send(1), send(-1))
    columns = _joined(send(1)(ca), send(-1)(cb))
    # At home last: the columns travel once less. By halves as everywhere, or this would be the largest of the blocks.
    rows, columns, out_home = _blockwise(block, own, visit, rows, columns, kept_home, least=2)
    return rows, columns, (out_away, out_home)


def _grid(block, own, visit, rows, columns, kept, layout, width, combine):
    """Own rows gathered along the grid's C, `width`, visitors through its R, then own rows' accumulators back to their owners."""
    length = layout.size // width
    along = lambda tree: layout.send(tree, lambda i: i // width * width + (i % width + 1) % width)  # noqa: E731
    if width == 1:
        return _ring(block, own, visit, rows, columns, kept, layout, (length, 1))

    def gather(part, _, __):
        part = along(part)
        return part, part

    _, others = _loop(gather, own, width - 1, None)  # piece k is from the device k places before
    own = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]).reshape(-1, *a.shape[1:]), own, others)
    wide = jax.tree.map(lambda a: jnp.concatenate([a] * width), rows)
    wide, columns, out = _ring(block, own, visit, wide, columns, kept, layout, (length, width))
    pieces = jax.tree.map(lambda a: a.reshape(width, -1, *a.shape[1:]), wide)

    def scatter(part, _, piece):
        return combine(along(part), piece), None

    start, home = (jax.tree.map(lambda a, k=k: a[k], pieces) for k in (1, 0))
    part, _ = _loop(scatter, start, width - 2, jax.tree.map(lambda a: a[2:], pieces))
    return combine(along(part), home), columns, out


def _gathered(block, own, visit, rows, columns, kept, layout, combine):
    """Everybody's own rows against the visitors at home, who go nowhere; own rows' accumulators back to their owners."""
    everyone = layout.gather(own)
    wide = jax.tree.map(lambda a: jnp.concatenate([a] * layout.size), rows)
    wide, columns, out = _blockwise(block, everyone, visit, wide, columns, kept)
    return layout.scatter(wide, combine), columns, out


def _half_ring(block, own, rows, kept, layout, combine):
    """Own rows against themselves: the ring turns half way, and what was gathered for the visitors is sent straight home."""
    kept_home, kept_away, kept_last = kept if kept is not None else (None, None, None)
    columns = rows  # untouched yet
    rows, out_home = _blockwise_half(block, own, rows, kept_home)
    size = layout.size
    onward = lambda tree: layout.send(tree, lambda i: (i + 1) % size)  # noqa: E731
    hops, even = (size - 1) // 2, size % 2 == 0
    out_away = out_last = None
    if hops:
        rows, a, b, out_away = _travel(block, own, own, rows, columns, kept_away, hops, onward, onward)
    else:
        a, b = zip(_halves(own), _halves(columns), strict=True)
    (_, ca), (_, cb) = a, b
    if even:
        # Devices half a ring apart call on each other: each takes two of the four quarters that they have between them, one
        # device a with a and b with b, the other a with b and b with a.
        kept_last = kept_last if kept_last is not None else (None, None)
        (visit_a, ca), (visit_b, cb), hops = onward(a), onward(b), hops + 1
        crossed = layout.index() >= size // 2
        half, columns, out_last = _length(own) // 2, [], []
        for k, (visit, column) in enumerate(((visit_a, ca), (visit_b, cb))):
            start = jnp.where(crossed, 1 - k, k) * half
            mine, row = jax.tree.map(lambda t, start=start: lax.dynamic_slice_in_dim(t, start, half), (own, rows))
            row, column, out = _blockwise(block, mine, visit, row, column, kept_last[k])
            rows = jax.tree.map(lambda t, part, start=start: lax.dynamic_update_slice_in_dim(t, part, start, 0), rows, row)
            columns.append(column), out_last.append(out)
        (ca, cb), out_last = columns, tuple(out_last)
    home = layout.send(_joined(ca, cb), lambda i: (i - hops) % size)
    return combine(rows, home), (out_home, out_away, out_last)


# ------------------------------------------------------------------------------------------------------------------ sweep
def _together(block, views):
    """A block function of rows, for tuples of `views` views of the same examples: their blocks are taken as one."""

    def join(parts):
        return None if parts is None else jax.tree.map(lambda *v: jnp.concatenate(v), *parts)

    def part(tree):
        return tuple(jax.tree.map(lambda v, k=k: jnp.split(v, views)[k], tree) for k in range(views))

    def joined(a, b, row, column, fresh, kept):
        if fresh is not None:
            fresh = jnp.tile(fresh, [views if size > 1 else 1 for size in fresh.shape])
        row, column, out = block(join(a), join(b), join(row), join(column), fresh, kept)
        return part(row), None if column is None else part(column), out

    return joined


def _each(combine):
    """The same for a tuple of views, one by one."""
    return lambda p, q: tuple(map(combine, p, q)) if isinstance(p, tuple) else combine(p, q)


def add(shared, a, b):
    """The accumulators of gradients and sums: added leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def sweep(block, shared, own, visit, rows, columns, *, kept=None, combine=add, schedule=1, dtype=jnp.float32):
    """Visit all pairs of own (N rows) and visit (M rows). -> rows (N, ...), columns (M, ...), kept.

    block(shared, a, b, row, column, fresh, kept) -> row, column, out: a and row are blocks of own and its accumulators, b and
    column of visit's; fresh: bool mask of the pairs that count, or None for all; out is kept and handed to the same block by
    a later sweep of the same shapes. visit=None pairs own with itself, each unordered pair once: column gathers for b what row
    gathers for a, and is None where the block lies on the diagonal. Needs an even number of rows on each of an even number of devices.
    shared: arrays that every device holds whole. own, visit: dicts of arrays whose rows are split over the devices; with visit=None
    own may be a tuple of dicts, views of the same examples, which are never copied into one: rows is then a tuple as well.
    rows, columns: {name: (initial value, shape of a row)}, of `dtype`. combine(shared, p, q): how two partial accumulators become one.
    schedule: "gather", or how many columns C the grid of devices has; 1 is the ring.
    """
    layout = layout_of(*jax.tree.leaves((own, visit)))
    check_divides(layout, x=_length(own), **({} if visit is None else {"y": _length(visit)}))

    def start(spec, like):
        if isinstance(like, tuple):
            return tuple(start(spec, view) for view in like)
        return {name: jnp.full((_length(like), *shape), value, dtype) for name, (value, shape) in spec.items()}

    def local(shared, own, visit, kept):
        bound = lambda *args: block(shared, *args)  # noqa: E731
        merge = functools.partial(combine, shared)
        initial = start(rows, own)
        if visit is None:
            bound = _together(bound, len(own)) if isinstance(own, tuple) else bound
            half = _blockwise_half if layout is None else functools.partial(_half_ring, layout=layout, combine=_each(merge))
            gathered, out = half(bound, own, initial, kept)
            return gathered, {}, out
        gathered = start(columns, visit)
        if layout is None:
            return _blockwise(bound, own, visit, initial, gathered, kept)
        if schedule == "gather":
            return _gathered(bound, own, visit, initial, gathered, kept, layout, None if combine is add else merge)
        return _grid(bound, own, visit, initial, gathered, kept, layout, schedule, merge)

    if layout is None:
        return local(shared, own, visit, kept)

    def on_device(shared, own, visit, kept):
        out = local(shared, own, visit, jax.tree.map(lambda a: a[0], kept))
        return out[0], out[1], jax.tree.map(lambda a: a[None], out[2])

    whole, split = PartitionSpec(), PartitionSpec(layout.axes)
    args = [(shared, whole), (own, split), (visit, split), (kept, split)]
    if AxisType.Explicit in layout.mesh.axis_types:  # where the axes are the user's to place, nothing is placed behind the back
        args = [(jax.tree.map(lambda a, spec=spec: jax.reshard(a, NamedSharding(layout.mesh, spec)), tree), spec) for tree, spec in args]
    values, specs = zip(*args, strict=True)
    return jax.shard_map(on_device, mesh=layout.mesh, in_specs=specs, out_specs=split, check_vma=False)(*values)
