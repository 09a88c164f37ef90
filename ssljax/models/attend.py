"""softmax(q k') v, by what serves the chip at hand best; every way of it is held against the definition by the same test."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from ssljax import sharding
from ssljax.models.layers import saved

# TPUs whose compiler keeps what a loop works on in the memory on the chip: of a ViT's attention half to a quarter of the bytes go to HBM
# and back that go there otherwise. On a v5p and a TPU7x they would be more (`ssljax.plan --top 10`).
KEEPS_LOOPS = ("TPU v4", "TPU v5 lite", "TPU v5e", "TPU v6 lite", "TPU v6e")
TURN_SCORES = 5 * 2**20  # bytes of scores that are looked at together
ALL_SCORES = 16 * 2**20  # bytes of all scores of a device that there are no turns up to


def _product(a, b, over_a, over_b, out=None):
    """A product of matrices for each picture and head. a, b (..., ., .); over_a, over_b: the axis of each that is summed over, -1 or -2."""
    each = tuple(range(a.ndim - 2))
    return jax.lax.dot_general(a, b, (((a.ndim + over_a,), (b.ndim + over_b,)), (each, each)), preferred_element_type=out)


def _scores(q, k, bias, mask, causal):
    """q (..., N, F), k (..., M, F) -> (..., N, M) float32; what is masked is finite, so that a query that may look nowhere looks
    everywhere."""
    score = q.shape[-1] ** -0.5 * _product(q, k, -1, -1, jnp.float32)
    score = score if bias is None else score + bias
    if causal:
        mask = jnp.tri(*score.shape[-2:], dtype=bool) & (True if mask is None else mask)
    return score if mask is None else jnp.where(mask, score, -0.7 * jnp.finfo(score.dtype).max)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_in_few_passes(causal, q, k, v, bias, mask):
    """`attend` of q (B, H, N, F), k and v (B, H, M, F), which passes over few (N, M) matrices, and those as they lie.

    Derived from the definition, XLA's CPU compiler writes three of them out again, transposed: a third of the time at 197 tokens; and a
    TPU's reads all of them in float32, and writes dp out to sum its rows."""
    return _attend_forward(causal, q, k, v, bias, mask)[0]


def _attend_forward(causal, q, k, v, bias, mask):
    p = jax.nn.softmax(_scores(q, k, bias, mask, causal)).astype(v.dtype)
    y = _product(p, v, -1, -2)
    return y, (q, k, v, bias, p, y)


def _attend_backward(causal, kept, g):
    q, k, v, bias, p, y = kept
    # The sum of dp p over a row is g y' (Dao et al. 2022, section 3.1), of fewer numbers, and known before dp.
    ds = p * (_product(g, v, -1, -1, jnp.float32) - (g * y).sum(-1, keepdims=True, dtype=jnp.float32))
    dbias = None
    if bias is not None:
        dbias = ds.sum([axis for axis, n in enumerate(bias.shape) if n == 1], keepdims=True).astype(bias.dtype)
    ds = (q.shape[-1] ** -0.5 * ds).astype(q.dtype)
    dk, dv = _product(q, ds, -2, -2), _product(g, p, -2, -2)  # (B, H, F, M)
    return _product(ds, k, -1, -2), dk.swapaxes(2, 3), dv.swapaxes(2, 3), dbias, None


_attend_in_few_passes.defvjp(_attend_forward, _attend_backward)


# --------------------------------------------------------------------------------------------------------------- in turns
@dataclasses.dataclass(frozen=True)
class Turns:
    """How `_attend_in_turns` goes about it. heads: how many, of any pictures, a turn takes; split: how a mesh splits (B, H, ...)."""

    heads: int
    causal: bool
    mesh: Any
    split: PartitionSpec

    def __call__(self, function, arrays, mask, bias, total=False):
        """function(*arrays, mask, bias) of a turn's heads -> arrays of them; over all heads of a device, on each device of the mesh.

        total: the last that function gives is, instead, the sum over all pictures of what it gives, (H, N, M)."""

        def local(arrays, mask, bias):
            batch, heads = arrays[0].shape[:2]
            turns = [x.reshape(-1, self.heads, *x.shape[2:]) for x in arrays]

            def turn(summed, given):
                i, turn = given
                masked = None if mask is None else _masked(mask[:, 0], i, self.heads, heads)
                out = function(*turn, masked, None if bias is None else _own(bias[0], i, self.heads))
                return (_added(summed, out[-1], i), out[:-1]) if total else (None, out)

            summed = jnp.zeros(bias.shape[1:], jnp.float32) if total else None
            summed, out = jax.lax.scan(turn, summed, (jnp.arange(len(turns[0])), turns))
            if total and self.mesh is not None:
                summed = jax.lax.psum(summed, self.split[0])
            return [x.reshape(batch, heads, *x.shape[2:]) for x in out], summed

        if self.mesh is None:
            out, summed = local(arrays, mask, bias)
        else:
            pictures, heads = self.split
            given = self.split, PartitionSpec(None if mask is None or mask.shape[0] == 1 else pictures), PartitionSpec(None, heads)
            made = self.split, PartitionSpec(heads)
            out, summed = jax.shard_map(local, mesh=self.mesh, in_specs=given, out_specs=made, check_vma=False)(arrays, mask, bias)
        return (*out, summed) if total else out


def _masked(mask, i, count, heads):
    """mask (B or 1, N, M), of pictures of `heads` heads each -> that of the heads of turn i (count or 1, N, M)."""
    if len(mask) == 1:
        return mask
    pictures = max(1, count // heads)
    return jnp.repeat(jax.lax.dynamic_slice_in_dim(mask, i * count // heads, pictures), count // pictures, axis=0)


def _own(bias, i, count):
    """bias (H, N, M) -> that of the heads of turn i (count, N, M), which are all of several pictures', or some of one's."""
    heads = len(bias)
    return jnp.concatenate([bias] * (count // heads)) if count >= heads else jax.lax.dynamic_slice_in_dim(bias, i * count % heads, count)


def _added(summed, part, i):
    """summed (H, N, M) + what turn i gives for its heads (count, N, M)."""
    heads, count = len(summed), len(part)
    if count >= heads:
        return summed + part.reshape(-1, heads, *part.shape[1:]).sum(0)
    start = i * count % heads
    return jax.lax.dynamic_update_slice_in_dim(summed, jax.lax.dynamic_slice_in_dim(summed, start, count) + part, start, 0)


def _turns(q, k, bias, mask, causal):
    """Turns of q (B, H, N, F) and k (B, H, M, F), None where all at once is as well, or where turns cannot be taken."""
    mesh, (batch, heads) = jax.sharding.get_abstract_mesh(), q.shape[:2]
    if sharding.chip() not in KEEPS_LOOPS or (mask is not None and mask.shape[1] > 1):
        return None
    if bias is not None and bias.shape != (1, heads, q.shape[2], k.shape[2]):
        return None
    if mesh.empty and jax.device_count() > 1:  # turns of whose pictures?
        return None
    split = PartitionSpec()
    if not mesh.empty and AxisType.Manual not in mesh.axis_types:
        split = PartitionSpec(sharding.BATCH[0], "tensor")
        if not {*sharding.BATCH[0], "tensor"} <= {*mesh.axis_names}:  # not one of `sharding.make_mesh`
            return None
        shards = math.prod(mesh.shape[axis] for axis in sharding.BATCH[0])
        if batch % shards or heads % mesh.shape["tensor"]:
            return None
        batch, heads = batch // shards, heads // mesh.shape["tensor"]
    size = 4 * (-(-q.shape[2] // 8) * 8) * (-(-k.shape[2] // 128) * 128)  # as a TPU lays the scores of a head out
    if batch * heads * size <= ALL_SCORES:
        return None
    whole = lambda n: heads % n == 0 or (n % heads == 0 and batch % (n // heads) == 0)  # noqa: E731
    fit = max(n for n in range(1, batch * heads + 1) if whole(n) and n * size <= max(TURN_SCORES, size))
    return Turns(fit, causal, mesh if len(split) else None, split)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_in_turns(turns, q, k, v, bias, mask):
    """`attend` of q (B, H, N, F), k and v (B, H, M, F), a few heads at a time, whose scores never leave the chip; they are computed again
    for the gradient (FlashAttention, Dao et al. 2022). bias: (1, H, N, M). mask: (B or 1, 1, N or 1, M)."""
    return _turns_forward(turns, q, k, v, bias, mask)[0]


def _turns_forward(turns, q, k, v, bias, mask):
    given = mask
    if mask is not None:  # what hangs from it alone would be taken out of a loop over blocks: masks of all turns, as large as the scores
        given, q = jax.lax.optimization_barrier((mask, q))

    def turn(q, k, v, mask, bias):
        score = _scores(q, k, bias, mask, turns.causal)
        largest = score.max(-1, keepdims=True)
        e = jnp.exp(score - largest)
        total = e.sum(-1, keepdims=True)
        y = _product(e.astype(v.dtype), v, -1, -2, jnp.float32) / total
        return y.astype(v.dtype), largest[..., 0], total[..., 0]

    y, largest, total = (saved(x) for x in turns(turn, (q, k, v), given, bias))
    return y, (q, k, v, y, largest, total, mask, bias)


def _turns_backward(turns, kept, g):
    *arrays, mask, bias = kept

    def turn(q, k, v, y, largest, total, g, mask, bias):
        p = jnp.exp(_scores(q, k, bias, mask, turns.causal) - largest[..., None]) / total[..., None]
        slope = p * (_product(g, v, -1, -1, jnp.float32) - (g * y).sum(-1, keepdims=True, dtype=jnp.float32))
        ds, p = (q.shape[-1] ** -0.5 * slope).astype(q.dtype), p.astype(q.dtype)
        slopes = _product(ds, k, -1, -2), _product(ds, q, -2, -2), _product(p, g, -2, -2)
        return slopes if bias is None else (*slopes, slope)

    dq, dk, dv, *dbias = turns(turn, (*arrays, g), mask, bias, total=bias is not None)
    return dq, dk, dv, dbias[0][None].astype(bias.dtype) if dbias else None, None


_attend_in_turns.defvjp(_turns_forward, _turns_backward)


def attend(q, k, v, *, bias=None, mask=None, causal=False):
    """softmax(q k' / sqrt(F) + bias, where mask) v. q (B, N, H, F), k and v (B, M, H, F) -> (B, N, H, F).

    bias float, mask bool, both (B or 1, H or 1, N or 1, M). On a GPU by cuDNN's flash attention where it can and pays (`_flash_pays`);
    otherwise by `_attend_in_few_passes`, or on a TPU that keeps what a loop works on in the memory on the chip, and of more scores than
    that holds, by `_attend_in_turns`. By the definition where neither has been tried: in other than float32 on a CPU."""
    if sharding.platform() == "gpu" and bias is None and mask is None and _flash_pays(q, k):
        return _flash(q, k, v, causal)
    if sharding.platform() == "cpu" and q.dtype != jnp.float32:
        return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, is_causal=causal)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    turns = _turns(q, k, bias, mask, causal)
    y = _attend_in_turns(turns, q, k, v, bias, mask) if turns else _attend_in_few_passes(causal, q, k, v, bias, mask)
    return y.swapaxes(1, 2)


def _flash_pays(q, k):
    """Whether in half precision, of heads up to 128 wide, of more than 64 tokens (launch/bench/attention.py: 1.12 ms for the compiler's
    1.97 at 197, 0.60 for 0.47 at 64), and not of a single query. A bias or a mask it would want written out to (.., N, M), which would cost
    what it saves."""
    half = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    return half and min(q.shape[1], k.shape[1]) >= 16 and max(q.shape[1], k.shape[1]) > 64


def _flash(q, k, v, causal):
    """`attend` by cuDNN. It takes even lengths: odd ones are padded, and it is told where they end."""
    lengths, ends = (q.shape[1], k.shape[1]), {}
    if any(length % 2 for length in lengths):
        q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
        names = ("query_seq_lengths", "key_value_seq_lengths")
        ends = {name: jnp.full(len(q), length, jnp.int32) for name, length in zip(names, lengths, strict=True)}
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn", **ends)[:, : lengths[0]]
