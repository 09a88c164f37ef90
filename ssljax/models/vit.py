"""Vision Transformer (Dosovitskiy et al. 2020): patches, class token, position table, blocks, pooling."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssljax.errors import UserError
from ssljax.fields import arg
from ssljax.models import constrain_batch, positions
from ssljax.models.layers import LayerNorm, patch_product
from ssljax.models.transformer import MLP, Attention, Context, Stack, kernel_init

SIZES = {
    "Ti": dict(width=192, depth=12, heads=3, mlp_dim=768),
    "S": dict(width=384, depth=12, heads=6, mlp_dim=1536),
    "B": dict(width=768, depth=12, heads=12, mlp_dim=3072),
    "L": dict(width=1024, depth=24, heads=16, mlp_dim=4096),
    "So400m": dict(width=1152, depth=27, heads=16, mlp_dim=4304),
    "H": dict(width=1280, depth=32, heads=16, mlp_dim=5120),
    "g": dict(width=1408, depth=40, heads=16, mlp_dim=6144),
    "G": dict(width=1664, depth=48, heads=16, mlp_dim=8192),
}


def size(variant, **changes):
    """ "B/16" -> the fields of a ViT of that size and patch, for a config: `encoder=vit.size("B/16", pool="map")`."""
    letter, _, patch = variant.partition("/")
    if letter not in SIZES or not patch.isdigit():
        raise UserError(f"ViT variant {variant!r}: expected SIZE/PATCH with SIZE one of {list(SIZES)}, e.g. 'B/16'")
    return dict(name="vit", patch_size=int(patch), **SIZES[letter]) | changes


class AttentionPool(nn.Module):
    """Multi-head attention pooling with one learned probe (Zhai et al. 2022, section 4). (B, N, D) -> (B, D)."""

    heads: int
    mlp_dim: int
    activation: str = "gelu"
    norm_eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        batch, _, width = x.shape
        probe = self.param("probe", kernel_init, (1, 1, width))
        probe = jnp.broadcast_to(probe, (batch, 1, width)).astype(self.dtype)
        y = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, kernel_init=kernel_init, name="attn")(probe, x)
        z = LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name="norm")(y)
        return (y + MLP(self.mlp_dim, self.activation, self.dtype, name="mlp")(z))[:, 0]


class QueryPool(nn.Module):
    """CoCa's attentional pooler (Yu et al. 2022, section 3.2): learned queries look at the tokens. (B, N, D) -> (B, queries, width)."""

    queries: int
    width: int
    heads: int
    norm_eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        def norm(name):
            return LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name=name)

        query = self.param("query", nn.initializers.normal(0.02), (self.queries, self.width))
        query = jnp.broadcast_to(norm("norm_query")(query), (x.shape[0], self.queries, self.width))
        return Attention(self.heads, norm_eps=self.norm_eps, dtype=self.dtype, name="attn")(query, Context(memory=norm("norm_memory")(x)))


class ViT(Stack):
    """Images (B, H, W, C) -> {"pooled": (B, D), "tokens": (B, P + N, D), "patches": (B, N, D), ["cls": (B, D)], ...}.

    tokens: all P prefix tokens (class, distillation, registers) and N patches, after the final LayerNorm where `last_norm` is "tokens".
    With `pooler`: "pooler" (B, D), tanh of a linear layer on the class token (BERT, HF's ViT). With `out`: "embedding" (B, out), linear.
    With pool="queries": "memory" (B, queries - 1, query_width). With tubelet > 1 the input is a video (B, T, H, W, C).
    """

    image_size: int = arg(224, "side in pixels that the learned position table is made for")
    patch_size: int = arg(16, "side of a patch, pixels")
    pool: str = arg(
        "cls",
        "cls, gap (mean of patches), all (of all tokens), cls_gap (both, concatenated), cls_dist (mean), map (attention) or queries (CoCa)",
    )
    queries: int = arg(256, 'learned queries of pool="queries", whose first is "pooled" and whose others are "memory"')
    query_width: int = arg(768, "their width")
    query_heads: int = arg(8, "their attention heads")
    class_token: bool = arg(True, "prepend a class token")
    class_position: bool = arg(False, "a position for the class token, beside the token itself")
    distill_token: bool = arg(False, "a second token after the class token (DeiT, AST), with its position")
    registers: int = arg(0, "register tokens after the class token, without positions (Darcet et al. 2023)")
    position: str = arg(
        "learned", "learned, sincos_mae, sincos_moco_v3, sincos_big_vision, sincos_1d, rope, relative, relative_shared or none"
    )
    table: tuple = arg((), "rows and columns of patches that the position table is made for; (): image_size / patch_size of each")
    resize: str = arg("bicubic", "how a learned position table of another grid is resized", one_of=positions.RESIZES)
    rope_theta: float = arg(100.0, "base of the rotary frequencies")
    mask_token: bool = arg(False, "have a learned token to stand for masked patches")
    patch_bias: bool = arg(True, "a bias of the patch projection")
    stride: tuple = arg((), "rows and columns between patches; (): patch_size, so that none overlap")
    channels: int = arg(3, "channels of an image")
    frames: int = arg(16, "frames of a video, where tubelet is more than 1")
    tubelet: int = arg(1, "frames of a patch of video")
    first_norm: bool = arg(False, "LayerNorm in front of the blocks (CLIP)")
    last_norm: str = arg(
        "tokens",
        "what the LayerNorm behind the blocks takes: tokens, pooled (the pooled vector only), both (two of them) or none",
        one_of=("tokens", "pooled", "both", "none"),
    )
    pooler: bool = arg(False, 'add "pooler": tanh of a linear layer on the class token')
    out: int = arg(0, 'width of "embedding", a linear layer on the pooled vector; 0: none')
    out_bias: bool = arg(False, "a bias of that layer")

    @nn.compact
    def __call__(self, images, *, train, keep=None, mask=None, layers=False, tokens=True):
        """keep: int (B, n), indices of the patches to encode (MAE). mask: bool (B, N), patches replaced by the mask token.
        layers: add "layers" (depth, B, P + n, D), the tokens behind each block; "mlp": what its MLP added to them.
        tokens=False: no tokens, patches and registers are wanted; where the class token is pooled, the last block computes that alone."""
        x, grid = self._patches(images)  # (B, N, D)
        if mask is not None or (self.mask_token and self.is_initializing()):
            token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
            x = x if mask is None else jnp.where(mask[..., None], token.astype(x.dtype), x)
        table = self._positions(grid)
        x = x if table is None else x + table.astype(x.dtype)
        if keep is not None:
            x = jnp.take_along_axis(x, keep[..., None], axis=1)  # (B, n, D)
        prefix = self._prefix()
        if prefix:
            prefix = jnp.concatenate(prefix, axis=1).astype(x.dtype)  # (1, P, D)
            x = jnp.concatenate([jnp.broadcast_to(prefix, (x.shape[0], *prefix.shape[1:])), x], axis=1)
        count = x.shape[1] - (keep.shape[1] if keep is not None else grid[0] * grid[1])  # P
        x = self.layer_norm("first_norm")(x) if self.first_norm else x

        context, relative = self._relations(grid, count, keep)
        last = self.last_norm in ("tokens", "both")
        only = 0 if self.pool == "cls" and self.class_token and not tokens and not layers else None
        stack = self.transformer(last_norm=last, relative=relative)
        x, each = stack(x, train=train, context=context, layers=layers or True, only=only)

        outputs = {"tokens": x, "patches": x[:, count:]} | ({"layers": each} if layers else {})
        if self.class_token:
            outputs["cls"] = x[:, 0]
        if self.registers:
            outputs["registers"] = x[:, count - self.registers : count]
        pooled = self._pool(outputs, x)
        if self.last_norm in ("pooled", "both"):
            pooled = self.layer_norm("pool_norm")(pooled)
        if self.pool == "queries":
            outputs["memory"], pooled = pooled[:, 1:], pooled[:, 0]
        outputs["pooled"] = pooled
        if self.pooler:
            outputs["pooler"] = jnp.tanh(nn.Dense(self.width, dtype=self.dtype, kernel_init=kernel_init, name="pooler")(outputs["cls"]))
        if self.out:
            dense = nn.Dense(self.out, use_bias=self.out_bias, dtype=self.dtype, kernel_init=kernel_init, name="out")
            outputs["embedding"] = dense(pooled)
        return outputs if tokens else {name: y for name, y in outputs.items() if name not in ("tokens", "patches", "registers")}

    def example(self):
        """Inputs of a batch of one, which `models.init` may be called with."""
        if self.table:
            stride = self.stride or (self.patch_size,) * 2
            height, width = (n * step + self.patch_size - step for n, step in zip(self.table, stride, strict=True))
        else:
            height = width = self.image_size
        video = (self.frames,) if self.tubelet > 1 else ()
        return (jnp.zeros((1, *video, height, width, self.channels)),), {}

    def _patches(self, images):
        """-> (B, N, D), (rows, columns); frames of a video count as rows."""
        stride = self.stride or (self.patch_size,) * 2
        height, width = images.shape[-3:-1]
        grid = tuple((side - self.patch_size) // step + 1 for side, step in zip((height, width), stride, strict=True))
        if not self.stride and (height % self.patch_size or width % self.patch_size):
            raise UserError(f"image of {height}x{width} pixels does not divide into patches of {self.patch_size}")
        patch, stride = (self.patch_size,) * 2, tuple(stride)
        if self.tubelet > 1:
            if images.ndim != 5 or images.shape[1] % self.tubelet:
                raise UserError(f"tubelet={self.tubelet} needs videos (B, T, H, W, C) of a multiple of so many frames, got {images.shape}")
            patch, stride, grid = (self.tubelet, *patch), (self.tubelet, *stride), (images.shape[1] // self.tubelet * grid[0], grid[1])
        x = nn.Conv(self.width, patch, stride, padding="VALID", use_bias=self.patch_bias, dtype=self.dtype, kernel_init=_patch_init,
                    conv_general_dilated=patch_product, name="patch_embed")(images)  # fmt: skip
        return constrain_batch(x.reshape(images.shape[0], -1, self.width)), grid

    def _prefix(self):
        """Class token, distillation token and registers, those there are, each (1, P, D)."""

        def token(name, count=1, std=0.02):
            return self.param(name, nn.initializers.normal(std), (1, count, self.width))

        prefix = []
        if self.class_token:
            prefix.append(token("cls_token") + (token("cls_position") if self.class_position else 0))
        if self.distill_token:
            prefix.append(token("dist_token") + (token("dist_position") if self.class_position else 0))
        if self.registers:
            prefix.append(token("registers", self.registers))
        return prefix

    def _grid(self):
        """The grid of patches that tables of positions are made for."""
        side = self.image_size // self.patch_size
        return tuple(self.table) or (side, side)

    def _positions(self, grid):
        """(1, N, D) table for this grid, or None; a learned one is resized where the image is not of `image_size`."""
        if self.position in ("rope", "relative", "relative_shared", "none"):
            return None
        if self.position == "sincos_1d":
            return positions.sincos_1d(grid[0] * grid[1], self.width)[None]
        if self.position.startswith("sincos_"):
            return positions.sincos_2d(*grid, self.width, layout=self.position.removeprefix("sincos_"))[None]
        if self.position != "learned":
            names = "learned, sincos_mae, sincos_moco_v3, sincos_big_vision, sincos_1d, rope, relative, relative_shared, none"
            raise UserError(f"position={self.position!r}: expected one of {names}")
        rows, columns = self._grid()
        table = self.param("pos_embed", nn.initializers.normal(0.02), (1, rows * columns, self.width))
        return positions.resize(table, (rows, columns), grid, self.resize)

    def _relations(self, grid, prefix, keep):
        """-> what the blocks know of where tokens are (Context), rows of each block's own table of relative biases."""
        if self.position == "rope":
            sin, cos = positions.rotary(*grid, self.width // self.heads, theta=self.rope_theta, prefix=prefix)
            if keep is not None:  # of each picture its own patches, behind the prefix
                first = jnp.broadcast_to(jnp.arange(prefix), (len(keep), prefix))
                rows = jnp.concatenate([first, prefix + keep], axis=1)  # (B, P + n)
                sin, cos = jnp.asarray(sin)[rows], jnp.asarray(cos)[rows]
            return Context(rotary=(sin, cos)), 0
        if self.position.startswith("relative"):
            if keep is not None or prefix != 1 or tuple(grid) != self._grid():
                raise UserError(f"position={self.position!r} needs a class token, all patches and images of the grid {self._grid()}")
            index, rows = positions.relative_index(*grid)
            if self.position == "relative":
                return Context(relative=index), rows
            table = self.param("relative", nn.initializers.zeros, (rows, self.heads))
            return Context(bias=jnp.moveaxis(table[index], -1, 0)), 0
        return Context(), 0

    def _pool(self, outputs, tokens):
        if self.pool == "map":
            return AttentionPool(self.heads, self.mlp_dim, self.activation, self.norm_eps, jnp.dtype(self.dtype), name="pool")(tokens)
        if self.pool == "queries":
            return QueryPool(self.queries, self.query_width, self.query_heads, self.norm_eps, jnp.dtype(self.dtype), name="pool")(tokens)
        if self.pool == "gap":
            return outputs["patches"].mean(axis=1)
        if self.pool == "all":
            return tokens.mean(axis=1)
        if self.class_token and self.pool == "cls":
            return outputs["cls"]
        if self.class_token and self.pool == "cls_gap":
            return jnp.concatenate([outputs["cls"], outputs["patches"].mean(axis=1)], axis=-1)
        if self.class_token and self.distill_token and self.pool == "cls_dist":
            return tokens[:, :2].mean(axis=1)
        raise UserError(
            f"pool={self.pool!r} with class_token={self.class_token}: expected cls, cls_gap, cls_dist (with it), gap, all, map or queries"
        )


def _patch_init(key, shape, dtype=jnp.float32):
    """Xavier-uniform of the patch projection seen as a linear layer (p*p*3 -> D), as MAE and MoCo v3 do."""
    return kernel_init(key, (math.prod(shape[:-1]), shape[-1]), dtype).reshape(shape)
