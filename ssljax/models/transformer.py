"""Transformer blocks, stacked by `nn.scan`: parameters have a leading layer axis and compile time no depth.

One block serves every family (`Stack` lists what they differ in); what it is called with besides the tokens is a `Context`.
"""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from ssljax import models, sharding
from ssljax.errors import UserError
from ssljax.fields import arg, dtype
from ssljax.models.attend import attend
from ssljax.models.layers import REMAT, LayerNorm, drop_path, flat_product, laid_out, saved, stacked


@jax.custom_vjp
def gelu(x):
    """x Phi(x) (Hendrycks and Gimpel 2016). Keeps x alone for the backward pass, where derived from erf it would keep four arrays.

    x of any float dtype, computed in float32 or wider. phi and Phi are the standard normal's density and distribution, Phi(-|x|) is
    phi(x) r(|x|), Mills' ratio r. One exponential and one division, each used once: what is expensive and used twice, as Phi by erfc is,
    XLA's CPU compiler writes out, three arrays instead of one."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    tail = _density(wide) * _mills(jnp.abs(wide), x.dtype)
    return (jnp.maximum(wide, 0.0) - jnp.abs(wide) * tail).astype(x.dtype)


def _density(x):
    return jnp.exp(-0.5 * x * x) * 0.3989422804014327


def _mills(x, dtype):
    """Mills' ratio Phi(-x) / phi(x) for x >= 0. x: float32 or wider; dtype: the input's.

    Of float64 by erfc; beyond 26, where phi is 1e-147, the one at 26. Of float32 a fit of relative error 6e-8, which is what float32
    resolves; beyond 6, where phi is 6e-9, the one at 6. Of bfloat16 on a GPU, where arithmetic takes longer than the memory, one of 3e-4
    with no division, a tenth of what bfloat16 resolves."""
    if x.dtype == jnp.float64:
        x = jnp.minimum(x, 26.0)
        return 0.5 * jax.lax.erfc(x * 0.7071067811865476) / _density(x)
    x = jnp.minimum(x, 6.0)
    if sharding.platform() == "gpu" and dtype == jnp.bfloat16:
        return _polynomial(MILLS_OF_BFLOAT16, x / 3.0 - 1.0)
    return _polynomial(MILLS[0], x) / _polynomial(MILLS[1], x)


MILLS_OF_BFLOAT16 = (0.0439258, -0.0820138, 0.0381500, -0.0376535, 0.1139068, -0.1677052, 0.2071399, -0.2578846, 0.3045607)
MILLS = (0.0341721247, 0.261897759, 0.838723231, 1.25331406), (0.0341927067, 0.261345205, 0.879563192, 1.46708527, 1.0)


def _polynomial(coefficients, x):
    """coefficients: of the highest power first."""
    return functools.reduce(lambda value, coefficient: value * x + coefficient, coefficients)


def _gelu_backward(x, g):
    wide = _once_more(x).astype(jnp.promote_types(x.dtype, jnp.float32))  # Phi(x) + x phi(x)
    positive = wide > 0
    slope = positive + _density(wide) * (wide + jnp.where(positive, -1.0, 1.0) * _mills(jnp.abs(wide), x.dtype))
    dx = (g * slope).astype(x.dtype)
    # Two products and the bias's sum use it: a GPU's compiler would compute it again for the sum.
    return (jax.lax.optimization_barrier(dx) if sharding.platform() == "gpu" else dx,)


def _once_more(x):
    """x for the backward pass: a CPU's or a GPU's compiler would keep for it what the forward pass has made of x, in float32."""
    return x if sharding.platform() == "tpu" else jax.lax.optimization_barrier(x)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _keeping_x(activation, x):
    """activation(x), which keeps x alone for the backward pass, where derived it would keep what it is multiplied by as well."""
    return activation(x)


_keeping_x.defvjp(lambda activation, x: (activation(x), x), lambda activation, x, g: jax.vjp(activation, _once_more(x))[1](g))

ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(_keeping_x, nn.gelu),
    "quick_gelu": functools.partial(_keeping_x, lambda x: x * nn.sigmoid(1.702 * x)),
    "relu": nn.relu,
    "silu": functools.partial(_keeping_x, nn.silu),
}
kernel_init = nn.initializers.xavier_uniform()


@flax.struct.dataclass
class Context:
    """What all blocks see beside the tokens; any of it may be None.

    mask: bool, broadcastable to (B, H, N, N), True where a query may look. bias: float (H, N, N), added to the scaled scores.
    rotary: (sin, cos), each (N, D/H) or (B, N, D/H), of `positions.rotary`. memory: (B, M, C), the tokens that cross-attention looks at;
    memory_mask: bool, broadcastable to (B, H, N, M). relative: int (N, N), rows of a block's own table of relative position biases.
    """

    mask: Any = None
    bias: Any = None
    rotary: Any = None
    memory: Any = None
    memory_mask: Any = None
    relative: Any = None


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017), softmax in float32: of x to itself, or to `memory`. (B, N, D) -> (B, N, D)."""

    heads: int
    causal: bool = False
    qkv_bias: str = "all"
    qk_norm: bool = False
    norm_eps: float = 1e-6
    dtype: Any = jnp.float32
    relative: int = 0  # rows of the table of relative position biases; 0: none
    decode: int = 0  # tokens that a text may get, one a call, what the earlier ones gave kept in the collection "cache"; 0: all at once
    only: Any = None  # 0 or -1: what the first or the last token attends to alone is wanted, (B, 1, D); None: all

    @nn.compact
    def __call__(self, x, context=Context()):  # noqa: B008 (it is frozen)
        def dense(shape, name, axis=-1, init=kernel_init, bias=True):
            return nn.DenseGeneral(shape, axis=axis, use_bias=bias, dtype=self.dtype, kernel_init=init, dot_general=flat_product, name=name)

        width = x.shape[-1]
        one = (self.heads, width // self.heads)
        # The head axis is its own axis of the kernel, so a tensor axis of the mesh can shard it. One matmul for what can be fused.
        if context.memory is None:
            qkv = dense((3, *one), "qkv", init=_fused_init(3), bias=self.qkv_bias == "all")(x)
            if self.qkv_bias == "no_key":  # softmax does not see a bias of the keys
                bias = self.param("qv_bias", nn.initializers.zeros, (2, *one)).astype(qkv.dtype)
                qkv = qkv + jnp.stack([bias[0], jnp.zeros_like(bias[0]), bias[1]])
            qkv = saved(qkv)
            q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # (B, N, H, D/H)
        else:
            q = saved(dense(one, "q")(x))
            kv = self._kept("memory", lambda: saved(dense((2, *one), "kv", init=_fused_init(2))(context.memory.astype(self.dtype))))
            k, v = kv[:, :, 0], kv[:, :, 1]
        if self.qk_norm:
            q, k = (LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name=f"{n}_norm")(y) for n, y in (("q", q), ("k", k)))
        if context.rotary is not None:
            q, k = rotate(q, *context.rotary), rotate(k, *context.rotary)
        bias = context.bias
        if self.relative:
            table = self.param("relative", nn.initializers.zeros, (self.relative, self.heads))
            bias = jnp.moveaxis(table[context.relative], -1, 0)
        mask, causal = (context.mask if context.memory is None else context.memory_mask), self.causal
        if self.is_mutable_collection("intermediates") and context.memory is None:  # asked for by `models.attention` alone
            score = jnp.einsum("bhf,bnhf->bhn", q[:, 0], k).astype(jnp.float32) / q.shape[-1] ** 0.5
            self.sow("intermediates", "attention", jax.nn.softmax(score if bias is None else score + bias[:, 0]))
        if self.decode and context.memory is None:
            k, v, mask = self._with_earlier(k, v)
            causal = False
        if self.only is not None:
            q = _one(q, self.only, axis=1)
            bias, mask = (x if x is None or x.shape[-2] == 1 else _one(x, self.only, axis=-2) for x in (bias, mask))
            causal = False  # the last one sees all, and the first one is asked for where all see all
        bias = None if bias is None else bias[None].astype(self.dtype)
        y = attend(q, k, v, bias=bias, mask=mask, causal=causal)
        return dense(width, "proj", axis=(-2, -1))(y)

    def _kept(self, name, make):
        """`make()`; in decoding of the first call only, from then on what the cache holds."""
        if not self.decode:
            return make()
        if not self.has_variable("cache", name):
            self.put_variable("cache", name, make())
        return self.get_variable("cache", name)

    def _with_earlier(self, k, v):
        """This token's key and value (B, 1, H, F) put behind those of the tokens before -> all (B, decode, H, F), which there are."""
        at = self.variable("cache", "at", lambda: jnp.zeros((), jnp.int32))
        shape = (k.shape[0], self.decode, *k.shape[2:])
        keys = self.variable("cache", "keys", lambda: jnp.zeros(shape, k.dtype))
        values = self.variable("cache", "values", lambda: jnp.zeros(shape, v.dtype))
        keys.value = jax.lax.dynamic_update_slice_in_dim(keys.value, k, at.value, axis=1)
        values.value = jax.lax.dynamic_update_slice_in_dim(values.value, v, at.value, axis=1)
        there = (jnp.arange(self.decode) <= at.value)[None, None, None]
        at.value = at.value + 1
        return keys.value, values.value, there


def _one(x, index, axis):
    """The first (index 0) or the last (-1) of x along an axis, which stays."""
    return jax.lax.slice_in_dim(x, 0, 1, axis=axis) if index == 0 else jax.lax.slice_in_dim(x, -1, None, axis=axis)


def _fused_init(count):
    """Xavier-uniform for each of `count` layers fused into one on its own; DenseGeneral asks for the flat shape (D, count * D)."""

    def init(key, shape, dtype=jnp.float32):
        limit = jnp.sqrt(6.0 / (shape[0] + shape[-1] // count))
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def rotate(x, sin, cos):
    """Rotary positions (Su et al. 2021), halves form. x (B, N, H, F); sin, cos (N, F) or (B, N, F) -> (B, N, H, F)."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return x * cos[..., None, :].astype(x.dtype) + turned * sin[..., None, :].astype(x.dtype)


class MLP(nn.Module):
    """fc2(act(fc1(x))); gated (SwiGLU with activation="silu", Shazeer 2020): fc2(act(gate(x)) * fc1(x))."""

    hidden: int
    activation: str = "gelu"
    dtype: Any = jnp.float32
    gated: bool = False

    @nn.compact
    def __call__(self, x):
        def dense(width, name):
            return nn.Dense(width, dtype=self.dtype, kernel_init=kernel_init, dot_general=flat_product, name=name)

        width, act = x.shape[-1], ACTIVATIONS[self.activation]
        y = dense(self.hidden, "fc1")(x)
        y = act(dense(self.hidden, "gate")(x)) * y if self.gated else act(y)
        return dense(width, "fc2")(y)


class LayerScale(nn.Module):
    """x * gamma, one gamma a channel (Touvron et al. 2021b, CaiT)."""

    init: float

    @nn.compact
    def __call__(self, x):
        return x * self.param("gamma", nn.initializers.constant(self.init), (x.shape[-1],)).astype(x.dtype)


class Stack(nn.Module):
    """What every model made of transformer blocks has as fields, and `self.transformer(...)`, its blocks."""

    width: int = arg(768, "width of a token")
    depth: int = arg(12, "number of blocks")
    heads: int = arg(12, "attention heads")
    mlp_dim: int = arg(3072, "hidden width of a block's MLP")
    activation: str = arg("gelu", "gelu, gelu_tanh, quick_gelu, relu or silu")
    gated: bool = arg(False, "a gate in the MLP (SwiGLU with activation silu)")
    norm: str = arg("pre", "where a block normalises: pre (its branches' inputs) or post (BERT: the sums)")
    norm_eps: float = arg(1e-6, "epsilon of every LayerNorm")
    qkv_bias: str = arg("all", "biases of query, key, value: all, no_key or none")
    qk_norm: bool = arg(False, "LayerNorm of queries and keys, head by head")
    layer_scale: float = arg(0.0, "initial LayerScale on both branches; 0: none")
    drop_path: float = arg(0.0, "stochastic depth rate of the last block, rising linearly from 0")
    remat: str = arg("none", "what the backward pass recomputes: none, dots, full")
    dtype: str = dtype()

    def transformer(self, name="transformer", **more):
        """The blocks, a submodule of the caller's. more: fields of Transformer beside those above."""
        shared = {f: getattr(self, f) for f in Stack.__dataclass_fields__ if f not in ("width", "dtype", "parent", "name")}
        return Transformer(**shared, dtype=jnp.dtype(self.dtype), **more, name=name)

    def layer_norm(self, name):
        """A LayerNorm of this model's epsilon and dtype."""
        return LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name=name)


class Block(nn.Module):
    """x + Attention(LN(x)); [x + CrossAttention(LN(x))]; x + MLP(LN(x)); post-norm: x = LN(x + branch(x)).

    Each branch is dropped per example with probability `drop` (stochastic depth, Huang et al. 2016). only: see Transformer."""

    heads: int
    mlp_dim: int
    activation: str = "gelu"
    gated: bool = False
    norm: str = "pre"
    norm_eps: float = 1e-6
    qkv_bias: str = "all"
    qk_norm: bool = False
    layer_scale: float = 0.0
    drop_path: float = 0.0
    causal: bool = False
    cross: bool = False
    relative: int = 0
    decode: int = 0
    train: bool = False
    keep_layers: Any = False
    only: Any = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, drop, context):
        def dropped(y):
            if not (self.train and self.drop_path > 0):
                return y
            return drop_path(y, drop, self.make_rng("drop_path"))

        def branch(x, index, function):
            norm = LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name=f"norm{index}")
            y = function(norm(x) if self.norm == "pre" else x)
            y = LayerScale(self.layer_scale, name=f"scale{index}")(y) if self.layer_scale else y
            x = (x if self.only is None or x.shape == y.shape else _one(x, self.only, axis=1)) + dropped(y)
            return x if self.norm == "pre" else norm(x)

        attention = dict(qk_norm=self.qk_norm, norm_eps=self.norm_eps, decode=self.decode, dtype=self.dtype)
        own = Attention(self.heads, self.causal, self.qkv_bias, relative=self.relative, only=self.only, **attention, name="attn")
        x = branch(x, 1, lambda y: own(y, context.replace(memory=None)))
        if self.cross and context.memory is not None:
            other = Attention(self.heads, **attention, name="cross")
            x = branch(x, "_cross", lambda y: other(y, Context(memory=context.memory, memory_mask=context.memory_mask)))
        mlp, kept = MLP(self.mlp_dim, self.activation, self.dtype, self.gated, name="mlp"), {}
        x = branch(x, 2, lambda y: kept.setdefault("mlp", mlp(y)))
        x = models.constrain_batch(x)
        return x, kept.get(self.keep_layers, x if self.keep_layers else None)


class Transformer(nn.Module):
    """`depth` blocks and, with `last_norm`, a final LayerNorm. Parameters: blocks/... (depth, ...), norm/... . (B, N, D) -> (B, N, D).

    Called with layers=True (or "block") it returns (tokens, (depth, B, N, D)), the second what each block gave, before the final
    LayerNorm; with layers="mlp" what each block's MLP gave, before it is added.

    only: 0 or -1, the first or the last token alone is wanted, (B, 1, D), and no layers: the last block then looks at all tokens, but for
    that one alone, which saves 6 % of a ViT-S/16's FLOPs. Not in a CPU's loop: to cut the last block out and put its gradient back copies
    all parameters twice. Nor with recomputation: compiled for a v5p, CLIP's ViT-B/16 took 27 % more temporary memory for 5 % fewer FLOPs,
    where DINO's ViT-S/16, which recomputes nothing, took 7 % less on a v5e for 6 % fewer FLOPs.
    """

    depth: int
    heads: int
    mlp_dim: int
    activation: str = "gelu"
    gated: bool = False
    norm: str = "pre"
    norm_eps: float = 1e-6
    qkv_bias: str = "all"
    qk_norm: bool = False
    layer_scale: float = 0.0
    drop_path: float = 0.0  # rate of the last block; grows linearly from 0
    remat: str = "none"
    causal: bool = False
    cross: bool = False
    relative: int = 0
    decode: int = 0
    last_norm: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train, context=Context(), layers=False, only=None):  # noqa: B008
        for field, known in (
            ("remat", REMAT),
            ("activation", ACTIVATIONS),
            ("norm", ("pre", "post")),
            ("qkv_bias", ("all", "no_key", "none")),
        ):
            if getattr(self, field) not in known:
                raise UserError(f"{field}={getattr(self, field)!r}: expected one of {', '.join(known)}")
        if layers not in (False, True, "block", "mlp"):
            raise UserError(f"layers={layers!r}: expected False, True, block or mlp")
        rates = self.drop_path * jnp.arange(self.depth) / max(self.depth - 1, 1)
        own = {
            f: getattr(self, f) for f in Block.__dataclass_fields__ if f in Transformer.__dataclass_fields__ and f not in ("parent", "name")
        }

        def blocks(depth, **more):
            stack = stacked(Block, depth, self.remat, in_axes=(0, nn.broadcast), collections=("cache", "intermediates"))
            return stack(**own, train=train, **more)

        x = models.as_indexed(x.astype(self.dtype))
        cheap = self.remat == "none" and (sharding.platform() != "cpu" or laid_out(self.depth, self.remat))
        apart = only is not None and self.depth > 1 and cheap and not self.is_initializing()
        if not apart:
            x, each = blocks(self.depth, keep_layers=layers, name="blocks")(x, rates, context)
            x = x if only is None else _one(x, only, axis=1)
        else:
            leaves, tree = jax.tree.flatten(self.variables["params"]["blocks"])
            rest, last = map(tree.unflatten, zip(*(jnp.split(p, [self.depth - 1]) for p in leaves), strict=True))
            block = Block(**own, train=train, only=only, parent=None)
            keys = [{"drop_path": self.make_rng("drop_path")} if self.has_rng("drop_path") else {} for _ in range(2)]
            x, each = blocks(self.depth - 1, parent=None).apply({"params": rest}, x, rates[:-1], context, rngs=keys[0])
            x, _ = block.apply({"params": jax.tree.map(lambda p: p[0], last)}, x, rates[-1], context, rngs=keys[1])
        if self.last_norm:
            x = LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name="norm")(x)
        return (x, each) if layers else x
