"""Masked image modelling: patches, random masks and the reconstruction loss."""

import jax.numpy as jnp

from ssljax.errors import UserError


def patchify(images, patch_size):
    """images (B, H, W, C) -> patches (B, N, p*p*C): patches row-major, inside a patch row, column, channel.

    Raises UserError unless patch_size divides H and W.
    """
    batch, height, width, channels = images.shape
    if height % patch_size or width % patch_size:
        raise UserError(f"patch_size={patch_size} does not divide the image, {height} x {width} pixels")
    grid = images.reshape(batch, height // patch_size, patch_size, width // patch_size, patch_size, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch_size * patch_size * channels)


def unpatchify(patches, patch_size, grid=None):
    """The inverse of `patchify`: patches (B, N, p*p*C) -> images (B, H, W, C). grid: (rows, columns) of patches;
    default square.

    Raises UserError if the grid does not hold N patches.
    """
    batch, count, width = patches.shape
    rows, columns = grid or (round(count**0.5),) * 2
    if rows * columns != count:
        raise UserError(f"{count} patches do not fill a grid of {rows} x {columns}; pass grid=(rows, columns)")
    channels = width // patch_size**2
    x = patches.reshape(batch, rows, columns, patch_size, patch_size, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * patch_size, columns * patch_size, channels)


def random_masking(noise, mask_ratio):
    """Keep the int(N * (1 - mask_ratio)) patches of smallest noise (MAE, He et al. 2021, section 3, "Simple
    implementation").

    noise: (B, N), uniform. -> ids_keep int32 (B, n_keep) in the order of the noise; mask float32 (B, N), 1 = removed;
    ids_restore int32 (B, N): position of each patch in the shuffled order. Raises UserError if none is kept.
    """
    count = noise.shape[1]
    keep = int(count * (1 - mask_ratio))
    if not 0 < keep <= count:
        raise UserError(f"mask_ratio={mask_ratio} keeps {keep} of {count} patches; expected at least one and at most all")
    shuffle = jnp.argsort(noise, axis=1)
    ids_restore = jnp.argsort(shuffle, axis=1)
    return shuffle[:, :keep], (ids_restore >= keep).astype(jnp.float32), ids_restore


def mae_target(images, *, patch_size, norm_pix_loss):
    """What MAE reconstructs: patches (B, N, p*p*C) of images (B, H, W, C), float32.

    norm_pix_loss: each patch minus its mean, over the root of its unbiased variance + 1e-6 (He et al. 2021, section 3).
    """
    target = patchify(images.astype(jnp.float32), patch_size)
    if not norm_pix_loss:
        return target
    mean, variance = target.mean(-1, keepdims=True), target.var(-1, keepdims=True, ddof=1)
    return (target - mean) / jnp.sqrt(variance + 1e-6)


def mae(pred, images, mask, *, patch_size, norm_pix_loss):
    """Mean squared error over the masked patches (MAE, He et al. 2021, section 3, "Reconstruction target").

    loss = sum over masked patches of the batch of mean_k (pred_k - target_k)^2 / their number

    pred: (B, N, p*p*C). images: (B, H, W, C). mask: (B, N), 1 = removed. -> float32 scalar.
    """
    target = mae_target(images, patch_size=patch_size, norm_pix_loss=norm_pix_loss)
    errors = jnp.mean(jnp.square(pred.astype(jnp.float32) - target), axis=-1)  # (B, N)
    return jnp.sum(errors * mask) / jnp.sum(mask)
