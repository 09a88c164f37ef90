"""Layers that several models have: BatchNorm with torch's running statistics, stochastic depth; how blocks are looped over."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from ssljax import sharding


def saved(x):
    """x, which the policy "dots" keeps in place of the product that it was made of: else both are written, and x once more."""
    return checkpoint_name(x, "saved")


def _dots(primitive, *args, **params):
    flash = primitive.name.startswith("dot_product_attention_fwd")  # cuDNN's: what it gives is small, and dear to compute again
    return flash or params.get("name") == "saved" or jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params)


REMAT = {
    "none": None,  # keeps everything
    "dots": _dots,  # keeps weight matmuls, recomputes attention (but not flash attention) and what is cheap
    "full": jax.checkpoint_policies.nothing_saveable,  # keeps the input of a block only
}


class BatchNorm(nn.BatchNorm):
    """BatchNorm (Ioffe and Szegedy 2015) whose running statistics are those of torch. (..., C) -> (..., C).

    In training the batch's mean and biased variance normalise; "mean" and "var" move by 1 - momentum towards its mean and unbiased
    variance. Both are over the global batch on any mesh: the step is one program over the whole batch.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x):
        before = self.get_variable("batch_stats", "var")
        y = super().__call__(x)
        if not self.use_running_average and not self.is_initializing():
            count = x.size // x.shape[-1]
            # Flax has moved "var" by (1 - momentum) * biased variance; n / (n - 1) of that step is the step plus 1 / (n - 1) of it.
            after = self.get_variable("batch_stats", "var")
            self.put_variable("batch_stats", "var", after + (after - self.momentum * before) / max(count - 1, 1))
        return y


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) over the last axis, times a scale, plus a bias (Ba et al. 2016). (..., C) -> (..., C), `dtype`.

    Computed in float32 or wider, the variance as the squares' mean less the mean's square, in one pass. Keeps x and two numbers of each row
    for the backward pass, where derived from the definition it would keep three arrays of x's shape in float32."""

    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    use_scale: bool = True
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:]) if self.use_scale else None
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:]) if self.use_bias else None
        return _layer_norm(self.epsilon, jnp.dtype(self.dtype), x, scale, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _layer_norm(epsilon, dtype, x, scale, bias):
    return _norm_forward(epsilon, dtype, x, scale, bias)[0]


def _norm_forward(epsilon, dtype, x, scale, bias):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.maximum(jnp.square(wide).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
    rate = jax.lax.rsqrt(variance + epsilon)
    y = (wide - mean) * rate
    y = y if scale is None else y * scale
    y = y if bias is None else y + bias
    return y.astype(dtype), (x, mean, rate, scale, bias)


def _norm_backward(epsilon, dtype, kept, g):
    x, mean, rate, scale, bias = kept
    z, g = (x.astype(mean.dtype) - mean) * rate, g.astype(mean.dtype)
    over = tuple(range(x.ndim - 1))
    dscale = None if scale is None else (g * z).sum(over).astype(scale.dtype)
    dbias = None if bias is None else g.sum(over).astype(bias.dtype)
    dz = g if scale is None else g * scale
    dx = rate * (dz - dz.mean(-1, keepdims=True) - z * (dz * z).mean(-1, keepdims=True))
    return dx.astype(x.dtype), dscale, dbias


_layer_norm.defvjp(_norm_forward, _norm_backward)


def flat_product(x, kernel, dimensions, precision=None):
    """`jax.lax.dot_general` of a dense layer, x (..., K) and kernel (K, ...), as a product of two matrices: for the field `dot_general` of
    `nn.Dense` and `nn.DenseGeneral`.

    On one CPU device, for kernels from LARGE_KERNEL on: of more axes XLA's CPU compiler writes what the kernel's gradient is made of out
    again, transposed, 4 % of a ViT-S/16's step; and of few rows Eigen's product for the gradient of x takes longer to turn the kernel than
    to multiply (`_of_matrices`)."""
    (over, _), _ = dimensions
    if not sharding.one_cpu() or kernel.size < LARGE_KERNEL:
        y = jax.lax.dot_general(x, kernel, dimensions, precision=precision)
        # A bias of several axes is no vector to a GPU's library: it would be written out as large as y, and read.
        return jax.lax.optimization_barrier(y) if sharding.platform() == "gpu" and kernel.ndim > len(over) + 1 else y
    rows = x.reshape(-1, math.prod(kernel.shape[: len(over)]))
    return _of_matrices(precision, rows, kernel).reshape(*x.shape[: -len(over)], *kernel.shape[len(over) :])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _of_matrices(precision, x, kernel):
    """x (N, K) @ kernel, of as many axes as it likes, taken as (K, M).

    Keeps the kernel as it came: of one reshaped a loop over blocks keeps a copy, a second stack of their weights. And for few rows the
    gradient of x is (kernel @ slope^T)^T: Eigen turns its second factor, and so the smaller one. For 200 rows and a ViT-L's kernels 13 to
    15 ms instead of 27 to 44 on two AVX-512 cores, for 788 a tenth less, for 1,576 no less."""
    return _of_matrices_forward(precision, x, kernel)[0]


def _of_matrices_forward(precision, x, kernel):
    return jnp.dot(x, kernel.reshape(x.shape[-1], -1), precision=precision), (x, kernel)


def _of_matrices_backward(precision, kept, slope):
    x, kernel = kept
    flat = kernel.reshape(x.shape[-1], -1)
    if len(x) <= FEW_ROWS:
        turned = jnp.dot(flat, slope.T, precision=precision)
        dx = jax.lax.optimization_barrier(turned).T  # or the compiler takes the transposes away, and the factors change places again
    else:
        dx = jnp.dot(slope, flat.T, precision=precision)
    return dx, jnp.dot(x.T, slope, precision=precision).reshape(kernel.shape)


_of_matrices.defvjp(_of_matrices_forward, _of_matrices_backward)


LARGE_KERNEL = 2**17  # elements; models of width 128 gain nothing
FEW_ROWS = 1024


def patch_product(x, kernel, strides, padding, *, precision=None, **convolution):
    """`jax.lax.conv_general_dilated` of windows that lie side by side, as one product of matrices: for `nn.Conv`'s field of that name.

    x (B, ..., C), kernel (*window, C, D) -> (B, ..., D). On an H200 one of a ViT-B's two convolutions, by its time the kernel's gradient,
    ran at 34 TFLOP/s, 1.7 of the step's 68 ms, where the products ran at 770. Other windows are left to the convolution, and all are on a
    TPU, where it moves half as many bytes for patches of 14 (compiled for a v5e)."""
    window, sides = kernel.shape[:-2], x.shape[1:-1]
    apart = padding == "VALID" and tuple(strides) == window and sharding.platform() != "tpu"
    if not apart or any(side % step for side, step in zip(sides, window, strict=True)):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, precision=precision, **convolution)
    rows, count = [side // step for side, step in zip(sides, window, strict=True)], len(window)
    x = x.reshape(len(x), *(n for pair in zip(rows, window, strict=True) for n in pair), x.shape[-1])
    x = x.transpose(0, *range(1, 2 * count, 2), *range(2, 2 * count + 1, 2), 2 * count + 1)
    return flat_product(x.reshape(len(x), *rows, -1), kernel.reshape(-1, kernel.shape[-1]), (((1 + count,), (0,)), ((), ())), precision)


def drop_path(y, rate, rng):
    """Stochastic depth (Huang et al. 2016): each example's y (B, ...) is zero with probability `rate`, else divided by 1 - rate."""
    keep = jax.random.bernoulli(rng, 1.0 - rate, (y.shape[0], *[1] * (y.ndim - 1)))
    return y * (keep / (1.0 - rate)).astype(y.dtype)  # a choice would be kept for the backward pass for every number of y


def laid_out(depth, remat):
    """Whether the program has `depth` blocks laid out one behind the other, where else it has a loop. remat: a key of REMAT.

    A loop's program does not grow with depth. On a GPU laid out: what a loop keeps for the backward pass is copied into stacks
    and out again, a fifth of a ViT-L's step. On a TPU where there are three at most and none is recomputed, as in stages of a Swin, a fifth
    of whose traffic those copies are; of a ViT-S's twelve, laid out, less would stay on the chip: nearly twice the bytes (compiled for a
    v5e). On several CPU devices laid out as well: XLA's CPU runtime begins what follows a loop before the loop has ended: where both hold
    collectives, two devices can meet them in different order, and wait for each other for ever. Laid out, recomputation saves no memory
    there: that compiler merges it with the first time, with or without prevent_cse. On one CPU device models of up to 24 blocks are, if
    none is recomputed, for the same copies: a step of a small one takes two thirds of the time, a ViT-S/16's seven eighths, a ViT-L's nine
    tenths; a ViT-S/16's program compiles in twice its six seconds, a ViT-L's in a quarter of a minute more.
    """
    platform = sharding.platform()
    if platform == "gpu" or (platform == "cpu" and jax.device_count() > 1):
        return True
    return remat == "none" and depth <= {"cpu": 24, "tpu": 3}.get(platform, 0)


def stacked(block, depth, remat, *, in_axes=0, collections=()):
    """The module `depth` blocks, one after the other: parameters, and what else is in `collections`, stacked along a first axis of length
    depth. remat: a key of REMAT. in_axes: of what a block is called with beside its carry, as for `flax.linen.scan`."""
    if remat != "none":
        block = nn.remat(block, policy=REMAT[remat], prevent_cse=sharding.platform() == "gpu")  # which a loop does not need
    return nn.scan(
        block,
        variable_axes={"params": 0, **dict.fromkeys(collections, 0)},
        split_rngs={"params": True, "drop_path": True},
        in_axes=in_axes,
        length=depth,
        unroll=depth if laid_out(depth, remat) else 1,
    )


def stage_rates(last, stages):
    """Stochastic depth of each block, rising linearly from 0 to `last` over all stages: one tuple of floats a stage."""
    rates = np.linspace(0.0, last, sum(stages))
    return [tuple(map(float, part)) for part in np.split(rates, np.cumsum(stages)[:-1])]
