"""Masked image modelling: patches, random masks, and what is predicted of the masked patches: pixels, tokens or features."""

import jax
import jax.numpy as jnp

from ssljax.errors import UserError
from ssljax.losses.classification import cross_entropy, masked_mean


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


def masked_squared_error(prediction, target, mask):
    """Mean over the masked tokens of mean_k (prediction_k - target_k)^2. prediction, target: (..., K). mask: (...), 1 or True = masked.
    -> float32 scalar."""
    return masked_mean(jnp.mean(jnp.square(prediction.astype(jnp.float32) - target), axis=-1), mask)


def mae(pred, images, mask, *, patch_size, norm_pix_loss):
    """Mean squared error over the masked patches (MAE, He et al. 2021, section 3, "Reconstruction target").

    loss = sum over masked patches of the batch of mean_k (pred_k - target_k)^2 / their number

    pred: (B, N, p*p*C). images: (B, H, W, C). mask: (B, N), 1 = removed. -> float32 scalar.
    """
    target = mae_target(images, patch_size=patch_size, norm_pix_loss=norm_pix_loss)
    return masked_squared_error(pred, target, mask)


def video_mae_target(videos, *, patch_size, tubelet, norm_pix_loss):
    """What VideoMAE reconstructs (Tong et al. 2022, section 3): patches (B, N, t*p*p*C) of videos (B, T, H, W, C), float32.

    A patch spans `tubelet` frames; patches run over time, rows, columns, and inside over frame, row, column, channel. norm_pix_loss:
    each channel of a patch minus its mean, over the root of its unbiased variance, + 1e-6 (outside of the root, unlike MAE's).
    Raises UserError unless tubelet divides T and patch_size H and W.
    """
    batch, frames, *_, channels = videos.shape
    if frames % tubelet:
        raise UserError(f"tubelet={tubelet} does not divide the video, {frames} frames")
    x = patchify(videos.astype(jnp.float32).reshape(-1, *videos.shape[2:]), patch_size)
    x = x.reshape(batch, frames // tubelet, tubelet, *x.shape[1:]).swapaxes(2, 3)
    x = x.reshape(batch, -1, tubelet * patch_size**2, channels)
    if norm_pix_loss:
        x = (x - x.mean(2, keepdims=True)) / (x.std(2, keepdims=True, ddof=1) + 1e-6)
    return x.reshape(*x.shape[:2], -1)


def video_mae(pred, videos, mask, *, patch_size, tubelet, norm_pix_loss):
    """Mean squared error over the masked patches (VideoMAE, Tong et al. 2022, eq. 1). pred: (B, N, t*p*p*C). videos: (B, T, H, W, C).
    mask: (B, N), 1 = removed. -> float32 scalar. Raises UserError as `video_mae_target` does."""
    target = video_mae_target(videos, patch_size=patch_size, tubelet=tubelet, norm_pix_loss=norm_pix_loss)
    return masked_squared_error(pred, target, mask)


def simmim(reconstruction, images, mask, *, patch_size):
    """Mean absolute error over the masked pixels (SimMIM, Xie et al. 2022, eq. 1).

    loss = sum over masked pixels and channels of |reconstruction - images| / (their number + 1e-5) / C

    reconstruction, images: (B, H, W, C). mask: (B, H / p, W / p), 1 = masked, p = patch_size. -> float32 scalar.
    Raises UserError where the mask does not cover the image.
    """
    if tuple(patch_size * side for side in mask.shape[1:]) != images.shape[1:3]:
        raise UserError(f"a mask of {mask.shape[1:]} patches of {patch_size} pixels does not cover an image of {images.shape[1:3]}")
    errors = patchify(jnp.abs(images.astype(jnp.float32) - reconstruction.astype(jnp.float32)), patch_size).sum(-1)  # (B, N)
    mask = mask.astype(jnp.float32).reshape(errors.shape)
    return jnp.sum(errors * mask) / (jnp.sum(mask) * patch_size**2 + 1e-5) / images.shape[-1]


def masked_tokens(logits, tokens, mask):
    """Cross entropy at the masked positions (BEiT, Bao et al. 2022, section 2.3): the mean over those of the whole batch.

    logits: (..., K). tokens: int (...). mask: (...), 1 or True = masked. -> float32 scalar.
    """
    return cross_entropy(logits, tokens, mask=mask)


# -------------------------------------------------------------------------------------------------------------- features
def smooth_l1(prediction, target, *, beta=1.0, mask=None):
    """Mean of d^2 / (2 beta) where |d| < beta, else |d| - beta / 2; d = prediction - target, (..., D).

    mask: (...), 1 or True where the mean is taken (default: everywhere). -> float32 scalar.
    """
    d = jnp.abs(prediction.astype(jnp.float32) - target.astype(jnp.float32))
    return masked_mean(jnp.mean(jnp.where(d < beta, jnp.square(d) / (2 * beta), d - beta / 2), axis=-1), mask)


# name -> the axes of (B, N, D) whose mean and biased variance go
NORMS = {"batch": (0, 1), "instance": (1,), "layer": (2,)}


def _normalised(x, names):
    for name in names:
        if name not in NORMS:
            raise UserError(f"norm {name!r}: expected one of {', '.join(map(repr, NORMS))}")
        mean, variance = (f(x, axis=NORMS[name], keepdims=True) for f in (jnp.mean, jnp.var))
        x = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
    return x


def data2vec_target(layers, *, norms=("layer",), norms_after=()):
    """Mean of a teacher's layers (data2vec, Baevski et al. 2022, section 3.3): layers (L, B, N, D) -> (B, N, D), float32, constant.

    norms: what each layer goes through ahead of the mean, in this order, norms_after what the mean goes through: "layer" over the
    features, "instance" over the tokens of an image, "batch" over all tokens of the batch, without parameters, eps 1e-5.
    Raises UserError for another name.
    """
    layers = jax.lax.stop_gradient(layers).astype(jnp.float32)
    return _normalised(jnp.mean(jax.vmap(lambda x: _normalised(x, norms))(layers), axis=0), norms_after)


def data2vec(prediction, target, mask, *, beta=2.0):
    """Smooth L1 at the masked tokens (data2vec, Baevski et al. 2022, section 3.4): the mean over those of the batch and over features.

    prediction, target: (B, N, D), target of `data2vec_target`. mask: (B, N), 1 or True = masked. -> float32 scalar.
    """
    return smooth_l1(prediction, jax.lax.stop_gradient(target), beta=beta, mask=mask)


def ijepa_targets(features, masks):
    """The teacher's features of the blocks to predict (I-JEPA, Assran et al. 2023, section 3, "Targets").

    features: (B, N, D) of the whole image, normalised here over D, without parameters, eps 1e-5. masks: int (T, B, M), which patches
    each target block has. -> (T, B, M, D), float32, constant.
    """
    features = _normalised(jax.lax.stop_gradient(features).astype(jnp.float32), ("layer",))
    return jnp.take_along_axis(features[None], masks[..., None], axis=2)


def ijepa(predictions, targets, *, beta=1.0):
    """Smooth L1, the mean over everything (I-JEPA, Assran et al. 2023, section 3, "Loss", a squared distance there; not in their code).

    predictions: (T, C, B, M, D), of each target block from each context block. targets: (T, B, M, D), of `ijepa_targets`.
    -> float32 scalar.
    """
    return smooth_l1(predictions, jax.lax.stop_gradient(targets)[:, None], beta=beta)
