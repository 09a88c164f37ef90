"""Vision Transformer (Dosovitskiy et al. 2020): patches, class token, position table, blocks, pooling."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssljax.errors import UserError
from ssljax.fields import arg
from ssljax.models import constrain_batch, positions
from ssljax.models.transformer import MLP, Transformer, kernel_init

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
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        batch, _, width = x.shape
        probe = self.param("probe", kernel_init, (1, 1, width))
        probe = jnp.broadcast_to(probe, (batch, 1, width)).astype(self.dtype)
        y = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, kernel_init=kernel_init, name="attn")(probe, x)
        z = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(y)
        return (y + MLP(self.mlp_dim, dtype=self.dtype, name="mlp")(z))[:, 0]


class ViT(nn.Module):
    """Images (B, H, W, 3) -> {"pooled": (B, D), "patches": (B, N, D), ["cls": (B, D)]}, after the final LayerNorm."""

    image_size: int = arg(224, "side in pixels that the learned position table is made for")
    patch_size: int = arg(16, "side of a patch, pixels")
    width: int = arg(768, "width of a token")
    depth: int = arg(12, "number of blocks")
    heads: int = arg(12, "attention heads")
    mlp_dim: int = arg(3072, "hidden width of a block's MLP")
    pool: str = arg("cls", "cls, gap (mean of patches) or map (attention pooling)")
    class_token: bool = arg(True, "prepend a class token")
    position: str = arg("learned", "learned, or sincos_mae, sincos_moco_v3, sincos_big_vision (fixed)")
    mask_token: bool = arg(False, "have a learned token to stand for masked patches")
    activation: str = arg("gelu", "gelu, gelu_tanh or quick_gelu")
    drop_path: float = arg(0.0, "stochastic depth rate of the last block, rising linearly from 0")
    remat: str = arg("none", "what the backward pass recomputes: none, dots, full")
    dtype: str = arg("float32", "compute dtype: float32 or bfloat16; parameters are float32")

    @nn.compact
    def __call__(self, images, *, train, keep=None, mask=None):
        """keep: int (B, n), indices of the patches to encode (MAE). mask: bool (B, N), patches replaced by the mask token."""
        batch, height, width = images.shape[:3]
        if height % self.patch_size or width % self.patch_size:
            raise UserError(f"image of {height}x{width} pixels does not divide into patches of {self.patch_size}")
        patch = (self.patch_size, self.patch_size)
        grid = (height // self.patch_size, width // self.patch_size)

        x = nn.Conv(self.width, patch, patch, padding="VALID", dtype=self.dtype, kernel_init=_patch_init, name="patch_embed")(images)
        x = constrain_batch(x.reshape(batch, -1, self.width))  # (B, N, D)
        if mask is not None:
            token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
            x = jnp.where(mask[..., None], token.astype(x.dtype), x)
        elif self.mask_token and self.is_initializing():
            self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        x = x + self._positions(grid).astype(x.dtype)
        if keep is not None:
            x = jnp.take_along_axis(x, keep[..., None], axis=1)  # (B, n, D)
        if self.class_token:
            token = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width))
            x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, self.width)).astype(x.dtype), x], axis=1)

        x = Transformer(
            self.depth,
            self.heads,
            self.mlp_dim,
            activation=self.activation,
            drop_path=self.drop_path,
            remat=self.remat,
            dtype=jnp.dtype(self.dtype),
            name="transformer",
        )(x, train=train)

        outputs = {"patches": x[:, 1:] if self.class_token else x}
        if self.class_token:
            outputs["cls"] = x[:, 0]
        if self.pool == "cls" and self.class_token:
            outputs["pooled"] = outputs["cls"]
        elif self.pool == "gap":
            outputs["pooled"] = outputs["patches"].mean(axis=1)
        elif self.pool == "map":
            outputs["pooled"] = AttentionPool(self.heads, self.mlp_dim, jnp.dtype(self.dtype), name="pool")(x)
        else:
            raise UserError(f"pool={self.pool!r} with class_token={self.class_token}: expected cls (with it), gap or map")
        return outputs

    def _positions(self, grid):
        """(1, N, D) table for this grid; a learned one is resized where the image is not of `image_size`."""
        if self.position.startswith("sincos_"):
            return positions.sincos_2d(*grid, self.width, layout=self.position.removeprefix("sincos_"))[None]
        if self.position != "learned":
            raise UserError(f"position={self.position!r}: expected learned or sincos_mae, sincos_moco_v3, sincos_big_vision")
        side = self.image_size // self.patch_size
        table = self.param("pos_embed", nn.initializers.normal(0.02), (1, side * side, self.width))
        return positions.resize(table, (side, side), grid)


def _patch_init(key, shape, dtype=jnp.float32):
    """Xavier-uniform of the patch projection seen as a linear layer (p*p*3 -> D), as MAE and MoCo v3 do."""
    fan_in = shape[0] * shape[1] * shape[2]
    return kernel_init(key, (fan_in, shape[3]), dtype).reshape(shape)
