"""Swin Transformer (Liu et al. 2021): attention in windows, shifted in every second block, patches merged between stages."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ssljax.errors import UserError
from ssljax.fields import arg, dtype
from ssljax.models import constrain_batch, positions
from ssljax.models.layers import REMAT, LayerNorm, drop_path, patch_product, stacked, stage_rates
from ssljax.models.transformer import ACTIVATIONS, MLP, Attention, Context, kernel_init

SIZES = {
    "T": dict(width=96, stages=(2, 2, 6, 2), heads=(3, 6, 12, 24)),
    "S": dict(width=96, stages=(2, 2, 18, 2), heads=(3, 6, 12, 24)),
    "B": dict(width=128, stages=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
    "L": dict(width=192, stages=(2, 2, 18, 2), heads=(6, 12, 24, 48)),
}


def size(variant, **changes):
    """ "T" -> the fields of a Swin-T, for a config: `encoder=swin.size("B", windows=(12,), image_size=384)`."""
    if variant not in SIZES:
        raise UserError(f"Swin variant {variant!r}: expected one of {list(SIZES)}")
    return dict(name="swin", **SIZES[variant]) | changes


def window_of(grid, window, ragged="swin"):
    """The window of a map of `grid` = (rows, columns) tokens -> (its rows, its columns), (shift of rows, of columns).

    Where a map is no larger than a window, the window is the map and there is no shift: by the map's smaller side ("swin", the authors'
    code and HF) or each axis by itself ("timm").
    """
    if ragged == "timm":
        sides = tuple(min(side, window) for side in grid)
        return sides, tuple(0 if side <= own else window // 2 for side, own in zip(grid, sides, strict=True))
    if min(grid) <= window:
        return (min(grid),) * 2, (0, 0)
    return (window,) * 2, (window // 2,) * 2


def shift_mask(grid, window, shift):
    """Who may look at whom in the windows of a map rolled by -shift: tokens that were neighbours before. bool (windows, N, N), numpy.

    grid: rows and columns of the map, multiples of the window's.
    """
    rows, columns = ((np.arange(n) >= n - w).astype(int) + (np.arange(n) >= n - s) for n, w, s in zip(grid, window, shift, strict=True))
    region = (rows[:, None] * 3 + columns)[None, :, :, None]  # rolled in from the other side or not, along each axis
    region = partition(region, window)[..., 0]
    return region[:, :, None] == region[:, None, :]


def partition(x, window):
    """(B, H, W, C) -> (B * windows, N, C), row by row; jax or numpy."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window[0], window[0], width // window[1], window[1], channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window[0] * window[1], channels)


def join(windows, window, grid):
    """The inverse of `partition`: (B * windows, N, C) -> (B, H, W, C)."""
    height, width = grid
    x = windows.reshape(-1, height // window[0], width // window[1], *window, windows.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


def relative_index(table, window):
    """Which of the (2 * table - 1)^2 relative biases a pair of tokens of a window takes, int32 (N, N), numpy. A window smaller than the
    `table` was made for takes the same differences of rows and columns."""
    index = positions.relative_index(table, table)[0][1:, 1:]  # without the class token's
    inside = np.flatnonzero((np.arange(table)[:, None] < window[0]) & (np.arange(table) < window[1]))
    return index[np.ix_(inside, inside)]


class Block(nn.Module):
    """x + Attention(LN(x)) in windows; x + MLP(LN(x)). (B, H, W, C) -> the same.

    Both branches are dropped per example with probability `drop`. shifted: bool scalar, whether the windows lie half a window further.
    """

    heads: int
    window: int
    mlp_ratio: float
    activation: str
    qkv_bias: str
    norm_eps: float
    ragged: str
    drop_path: float
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x, drop, shifted):
        def dropped(y):
            return drop_path(y, drop, self.make_rng("drop_path")) if self.train and self.drop_path > 0 else y

        def norm(name):
            return LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name=name)

        x = x + dropped(self._windows(norm("norm1")(x), shifted))
        hidden = int(self.mlp_ratio * x.shape[-1] + 1e-6)  # a ratio of integers may be a bit less than it
        mlp = MLP(hidden, self.activation, self.dtype, name="mlp")
        return constrain_batch(x + dropped(mlp(norm("norm2")(x)))), None

    def _windows(self, x, shifted):
        batch, height, width, _ = x.shape
        window, shift = window_of((height, width), self.window, self.ragged)
        grid = tuple(-(-n // w) * w for n, w in zip((height, width), window, strict=True))

        def pad(x):
            return jnp.pad(x, ((0, 0), (0, grid[0] - height), (0, grid[1] - width), (0, 0)))

        def roll(x, sign):
            # One scan runs blocks of both kinds, so whether to shift is data. The selection fuses with the copy into windows.
            return jnp.where(shifted, jnp.roll(x, (sign * shift[0], sign * shift[1]), (1, 2)), x) if any(shift) else x

        x = pad(roll(x, -1)) if self.ragged == "timm" else roll(pad(x), -1)
        context = Context(relative=relative_index(self.window, window))
        if any(shift):
            mask = jnp.logical_or(~shifted, shift_mask(grid, window, shift))  # (windows, N, N)
            mask = jnp.broadcast_to(mask, (batch, *mask.shape)).reshape(-1, 1, *mask.shape[1:])
            context = context.replace(mask=mask)
        attention = Attention(self.heads, qkv_bias=self.qkv_bias, relative=(2 * self.window - 1) ** 2, dtype=self.dtype, name="attn")
        x = join(attention(partition(x, window), context), window, grid)
        return roll(x[:, :height, :width], 1) if self.ragged == "timm" else roll(x, 1)[:, :height, :width]


class Stage(nn.Module):
    """[Patch merging], blocks in one `nn.scan`: their parameters have a leading axis. (B, H, W, C) -> (B, H/2, W/2, 2 C) if merging."""

    merge: bool
    merge_norm_eps: float
    rates: tuple  # stochastic depth of each block
    remat: str
    block: dict  # fields of Block

    @nn.compact
    def __call__(self, x):
        dtype = self.block["dtype"]
        if self.merge:
            x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
            x = jnp.concatenate([x[:, row::2, column::2] for column in range(2) for row in range(2)], axis=-1)
            x = LayerNorm(epsilon=self.merge_norm_eps, dtype=dtype, name="norm")(x)
            x = nn.Dense(x.shape[-1] // 2, use_bias=False, dtype=dtype, kernel_init=kernel_init, name="downsample")(x)
        depth = len(self.rates)
        stack = stacked(Block, depth, self.remat)
        return stack(**self.block, name="blocks")(x, jnp.asarray(self.rates, jnp.float32), jnp.arange(depth) % 2 == 1)[0]


class Swin(nn.Module):
    """Images (B, H, W, C) -> {"pooled": (B, D), "patches": (B, h*w, D), "stages": [(B, h, w, D), ...]}: the mean of the last stage's tokens
    behind a LayerNorm, those tokens, and the maps of all stages in front of it. With `out`: "embedding" (B, out), linear.

    Images and maps that do not divide are padded with zeros at the bottom and the right.
    """

    image_size: int = arg(224, "side in pixels that a learned position table is made for; any other will do")
    patch_size: int = arg(4, "side of a patch, pixels")
    channels: int = arg(3, "channels of an image")
    width: int = arg(96, "channels of the first stage; each stage doubles them")
    stages: tuple = arg((2, 2, 6, 2), "number of blocks of each stage")
    heads: tuple = arg((3, 6, 12, 24), "attention heads of each stage")
    windows: tuple = arg((7,), "side of a window, tokens: one for all stages or one for each")
    mlp_ratio: float = arg(4.0, "hidden width of a block's MLP over its width")
    activation: str = arg("gelu", "gelu, gelu_tanh, quick_gelu, relu or silu")
    qkv_bias: str = arg("all", "biases of query, key, value: all, no_key or none")
    position: str = arg("none", "positions added to the patches, beside the relative ones: none or learned")
    resize: str = arg("bicubic", "how a learned position table of another grid is resized", one_of=positions.RESIZES)
    ragged: str = arg("swin", "maps that windows do not tile: swin (pad, then shift) or timm (shift, then pad)")
    mask_token: bool = arg(False, "have a learned token to stand for masked patches")
    drop_path: float = arg(0.0, "stochastic depth rate of the last block, rising linearly from 0")
    norm_eps: float = arg(1e-5, "epsilon of the LayerNorms of blocks and of the last one")
    merge_norm_eps: float = arg(1e-5, "epsilon of the LayerNorms of patches and of merging")
    out: int = arg(0, 'width of "embedding", a linear layer on the pooled vector; 0: none')
    out_bias: bool = arg(False, "a bias of that layer")
    remat: str = arg("none", "what the backward pass recomputes: none, dots, full")
    dtype: str = dtype()

    @nn.compact
    def __call__(self, images, *, train, mask=None):
        """mask: bool (B, N), patches replaced by the mask token (SimMIM, Xie et al. 2021), N of the first stage."""
        self._check()
        dtype, patch = jnp.dtype(self.dtype), (self.patch_size,) * 2
        x = jnp.pad(images, ((0, 0), (0, -images.shape[1] % patch[0]), (0, -images.shape[2] % patch[1]), (0, 0)))
        x = nn.Conv(self.width, patch, patch, padding="VALID", dtype=dtype, kernel_init=kernel_init,
                    conv_general_dilated=patch_product, name="patch_embed")(x)  # fmt: skip
        x = LayerNorm(epsilon=self.merge_norm_eps, dtype=dtype, name="patch_norm")(x)
        if mask is not None or (self.mask_token and self.is_initializing()):
            token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
            x = x if mask is None else jnp.where(mask.reshape(*x.shape[:3], 1), token.astype(x.dtype), x)
        if self.position == "learned":
            side = -(-self.image_size // self.patch_size)
            table = self.param("pos_embed", nn.initializers.normal(0.02), (1, side * side, self.width))
            table = positions.resize(table, (side, side), x.shape[1:3], self.resize)
            x = x + table.reshape(1, *x.shape[1:]).astype(x.dtype)
        x = constrain_batch(x)

        shared = {f: getattr(self, f) for f in ("mlp_ratio", "activation", "qkv_bias", "norm_eps", "ragged", "drop_path")}
        windows = self.windows if len(self.windows) > 1 else self.windows * len(self.stages)
        maps = []
        for i, rates in enumerate(stage_rates(self.drop_path, self.stages)):
            block = dict(shared, heads=self.heads[i], window=windows[i], train=train, dtype=dtype)
            x = Stage(i > 0, self.merge_norm_eps, rates, self.remat, block, name=f"stage{i + 1}")(x)
            maps.append(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = LayerNorm(epsilon=self.norm_eps, dtype=dtype, name="norm")(x)
        outputs = {"pooled": x.mean(axis=1, dtype=jnp.float32), "patches": x, "stages": maps}
        if self.out:
            dense = nn.Dense(self.out, use_bias=self.out_bias, dtype=dtype, kernel_init=kernel_init, name="out")
            outputs["embedding"] = dense(outputs["pooled"])
        return outputs

    def example(self):
        """Inputs of a batch of one, which `models.init` may be called with."""
        return (jnp.zeros((1, self.image_size, self.image_size, self.channels)),), {}

    def _check(self):
        known = dict(remat=REMAT, activation=ACTIVATIONS, qkv_bias=("all", "no_key", "none"), position=("none", "learned"))
        for field, names in (known | dict(ragged=("swin", "timm"))).items():
            if getattr(self, field) not in names:
                raise UserError(f"{field}={getattr(self, field)!r}: expected one of {', '.join(names)}")
        for field, counts in (("heads", (len(self.stages),)), ("windows", (1, len(self.stages)))):
            if len(getattr(self, field)) not in counts:
                raise UserError(f"{field}={getattr(self, field)}: expected one for each of the {len(self.stages)} stages")
