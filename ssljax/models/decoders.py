"""Decoders of masked modelling."""

import math

import flax.linen as nn
import jax.numpy as jnp

from ssljax import losses
from ssljax.errors import UserError
from ssljax.fields import arg, dtype
from ssljax.models import positions
from ssljax.models.layers import BatchNorm, LayerNorm
from ssljax.models.transformer import Context, Stack, gelu, kernel_init


def unshuffled(visible, masked, ids_restore):
    """(B, n, D) and (B, N - n, D) in the order of `ids_restore`'s shuffle -> (B, N, D), each token in its place."""
    return jnp.take_along_axis(jnp.concatenate([visible, masked], axis=1), ids_restore[..., None], axis=1)


class MAEDecoder(Stack):
    """MAE's decoder (He et al. 2021, section 3): visible tokens back in place, mask tokens elsewhere, blocks, pixels.

    visible (B, n, D) in the order of `ids_restore`'s shuffle, ids_restore int (B, N) -> float32 (B, N, tubelet * patch_size^2 * 3).
    VideoMAE's (Tong et al. 2022) is the same on tubes of patches.
    """

    patch_size: int = arg(16, "side of a patch, pixels")
    width: int = arg(512, "width of a token")
    depth: int = arg(8, "number of blocks")
    heads: int = arg(16, "attention heads")
    mlp_dim: int = arg(2048, "hidden width of a block's MLP")
    position: str = arg("sincos_mae", "sincos_mae, sincos_moco_v3, sincos_big_vision, sincos_1d, or learned (with one for the class token)")
    embed_bias: bool = arg(True, "a bias of the layer that takes the encoder's width to this one")
    tubelet: int = arg(1, "frames of a patch of video")

    @nn.compact
    def __call__(self, visible, ids_restore, *, train, cls=None):
        """cls: the encoder's class token (B, D), which the decoder attends to as well, or None."""
        batch, count = ids_restore.shape
        embed = nn.Dense(self.width, use_bias=self.embed_bias, dtype=self.dtype, kernel_init=kernel_init, name="embed")
        token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        masked = jnp.broadcast_to(token, (batch, count - visible.shape[1], self.width))
        x = unshuffled(embed(visible), masked.astype(self.dtype), ids_restore)
        x = x + self._positions(count).astype(x.dtype)
        if cls is not None:
            first = embed(cls)[:, None]
            if self.position == "learned":
                first = first + self.param("cls_position", nn.initializers.normal(0.02), (1, 1, self.width)).astype(x.dtype)
            x = jnp.concatenate([first, x], axis=1)
        x = self.transformer()(x, train=train)
        x = x[:, -count:]
        pixels = self.tubelet * self.patch_size**2 * 3
        return nn.Dense(pixels, dtype=self.dtype, kernel_init=kernel_init, name="pixels")(x).astype(jnp.float32)

    def _positions(self, count):
        if self.position == "learned":
            return self.param("pos_embed", nn.initializers.normal(0.02), (1, count, self.width))
        if self.position == "sincos_1d":
            return positions.sincos_1d(count, self.width)[None]
        side = round(count**0.5)
        return positions.sincos_2d(side, count // side, self.width, layout=self.position.removeprefix("sincos_"))[None]


class ConvDecoder(nn.Module):
    """data2vec 2.0's decoder (Baevski et al. 2022, arXiv 2212.07525, section 3.2): grouped convolutions, each followed by LayerNorm and
    GELU and added to its input where that is as wide; a linear layer. The grid is square, or as near to it as the count of tokens lets.

    visible (B, n, C) in the order of `ids_restore`'s shuffle, masked (B, N - n, C), what stands for the others, ids_restore int (B, N)
    -> float32 (B, N, out). Raises UserError where `groups` does not divide the widths.
    """

    width: int = arg(768, "channels of a layer")
    depth: int = arg(6, "layers")
    kernel: int = arg(3, "side of a convolution")
    groups: int = arg(16, "groups of channels, which do not see each other")
    out: int = arg(768, "width of the targets")
    dtype: str = dtype()

    @nn.compact
    def __call__(self, visible, masked, ids_restore, *, train):
        del train
        if self.width % self.groups or visible.shape[-1] % self.groups:
            raise UserError(f"groups={self.groups} does not divide both width={self.width} and the encoder's, {visible.shape[-1]}")
        x = unshuffled(visible, masked.astype(visible.dtype), ids_restore).astype(self.dtype)
        batch, count, channels = x.shape
        side = round(count**0.5)
        x = x.reshape(batch, side, count // side, channels)
        for i in range(self.depth):
            convolution = nn.Conv(self.width, (self.kernel,) * 2, feature_group_count=self.groups, dtype=self.dtype, name=f"conv{i}")
            y = LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype, name=f"norm{i}")(convolution(x))
            y = gelu(y)
            x = x + y if x.shape == y.shape else y
        x = x.reshape(batch, count, -1)
        return nn.Dense(self.out, dtype=self.dtype, kernel_init=kernel_init, name="project")(x).astype(jnp.float32)


class PixelShuffle(nn.Module):
    """SimMIM's decoder (Xie et al. 2021): one linear layer a patch to its pixels. (B, N, D) -> float32 (B, N, patch_size^2 * 3)."""

    patch_size: int = arg(16, "side of a patch, pixels")
    dtype: str = dtype()

    @nn.compact
    def __call__(self, patches, *, train):
        del train
        return nn.Dense(self.patch_size**2 * 3, dtype=self.dtype, kernel_init=kernel_init, name="pixels")(patches).astype(jnp.float32)


class Predictor(Stack):
    """I-JEPA's predictor (Assran et al. 2023, section 3): from the context's tokens and the places of a target block, its tokens.

    context (B, n, C), context_ids int (B, n), target_ids int (B, m) -> (B, m, out).
    """

    width: int = arg(384, "width of a token")
    depth: int = arg(12, "number of blocks")
    mlp_dim: int = arg(1536, "hidden width of a block's MLP")
    out: int = arg(768, "width of the target encoder's tokens")
    grid: tuple = arg((14, 14), "rows and columns of patches")
    position: str = arg("sincos_mae", "sincos_mae or learned")

    @nn.compact
    def __call__(self, context, context_ids, target_ids, *, train):
        if self.position == "learned":
            table = self.param("pos_embed", nn.initializers.normal(0.02), (1, self.grid[0] * self.grid[1], self.width))[0]
        else:
            table = jnp.asarray(positions.sincos_2d(*self.grid, self.width, layout=self.position.removeprefix("sincos_")))
        token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        x = nn.Dense(self.width, dtype=self.dtype, kernel_init=kernel_init, name="embed")(context)
        x = x + table[context_ids].astype(x.dtype)
        asked = (token + table[target_ids]).astype(x.dtype)  # (B, m, D)
        x = self.transformer()(jnp.concatenate([x, asked], axis=1), train=train)
        x = x[:, -target_ids.shape[1] :]
        return nn.Dense(self.out, dtype=self.dtype, kernel_init=kernel_init, name="project")(x)


class LatentRegressor(Stack):
    """CAE's latent contextual regressor (Chen et al. 2022, section 2.1): mask tokens ask the visible tokens for the masked ones.

    visible (B, n, D), keep int (B, n), hidden int (B, m), places of both on the grid -> (B, m, D). Each block is attention of the asking
    to each other and to the visible, which stay as they are.
    """

    grid: tuple = arg((14, 14), "rows and columns of patches")

    @nn.compact
    def __call__(self, visible, keep, hidden, *, train):
        table = jnp.asarray(positions.sincos_2d(*self.grid, self.width, layout="mae"))
        token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        asked = (token + table[hidden]).astype(self.dtype)
        memory = visible + table[keep].astype(visible.dtype)
        return self.transformer(cross=True)(asked, train=train, context=Context(memory=memory))


class LinearHead(nn.Module):
    """One linear layer (BEiT's to its visual tokens, BLIP's to match or not). (..., D) -> float32 (..., out)."""

    out: int = arg(8192, "width of the output")
    dtype: str = dtype()

    @nn.compact
    def __call__(self, x, *, train):
        del train
        init = nn.initializers.truncated_normal(0.02)
        return nn.Dense(self.out, dtype=self.dtype, kernel_init=init, name="linear")(x).astype(jnp.float32)


class ImageDecoder(nn.Module):
    """From features back to a picture: a small map, doubled until it has the size. (B, D) or (B, h, w, D) -> float32 (B, size, size, out).

    A vector is spread over a map of 4 x 4 by a linear layer; each doubling is by nearest neighbour and a 3x3 convolution, which leaves no
    checkerboard as a strided deconvolution does (Odena et al. 2016). The last map has a place for each patch of the picture, and gives its
    pixels (Shi et al. 2016, arXiv 1609.05158): few channels at many places are what chips are slow at."""

    size: int = arg(32, "side of the picture, pixels: 4, or the map's side, times a power of two and patch_size")
    width: int = arg(128, "channels of the first map; each doubling halves them, to 16 at the least")
    out: int = arg(3, "channels of the picture")
    patch_size: int = arg(1, "side of a patch, pixels")
    dtype: str = dtype()

    @nn.compact
    def __call__(self, x, *, train):
        if x.ndim == 2:
            x = nn.Dense(16 * self.width, dtype=self.dtype, kernel_init=kernel_init, name="spread")(x).reshape(-1, 4, 4, self.width)
        steps = round(math.log2(max(self.size / self.patch_size / x.shape[1], 1)))
        if x.shape[1] * 2**steps * self.patch_size != self.size:
            raise UserError(f"size={self.size} is not {x.shape[1]} times a power of two times patch_size={self.patch_size}")
        width = self.width
        for i in range(steps):
            width = max(width // 2, 16)
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = nn.Conv(width, (3, 3), use_bias=False, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(not train, dtype=self.dtype, name=f"bn{i}")(x))
        x = nn.Conv(self.patch_size**2 * self.out, (3, 3), dtype=self.dtype, name="pixels")(x)
        patches = x.reshape(len(x), -1, x.shape[-1])
        return losses.unpatchify(patches, self.patch_size, x.shape[1:3]).astype(jnp.float32)
