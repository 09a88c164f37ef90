"""Patches, masks and the MAE loss against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import losses
from ssljax.errors import UserError

pytestmark = pytest.mark.quick


def test_patchify_and_back():
    images = np.random.default_rng(0).normal(size=(2, 6, 9, 2)).astype(np.float32)
    patches = losses.patchify(jnp.asarray(images), 3)
    assert patches.shape == (2, 6, 18)
    np.testing.assert_array_equal(patches[1, 4].reshape(3, 3, 2), images[1, 3:6, 3:6])  # row 1, column 1 of 2 x 3
    np.testing.assert_array_equal(losses.unpatchify(patches, 3, (2, 3)), images)
    square = jnp.asarray(images[:, :, :6])
    np.testing.assert_array_equal(losses.unpatchify(losses.patchify(square, 2), 2), square)
    with pytest.raises(UserError, match="patch_size=4"):
        losses.patchify(jnp.asarray(images), 4)
    with pytest.raises(UserError, match="grid"):
        losses.unpatchify(patches, 3)


def test_random_masking():
    noise = np.random.default_rng(0).uniform(size=(3, 12)).astype(np.float32)
    keep, mask, restore = losses.random_masking(jnp.asarray(noise), 0.75)
    for b in range(3):
        order = sorted(range(12), key=lambda i: noise[b, i])
        np.testing.assert_array_equal(keep[b], order[:3])
        np.testing.assert_array_equal(np.flatnonzero(np.asarray(mask[b]) == 0), sorted(order[:3]))
        np.testing.assert_array_equal(np.array(order)[restore[b]], np.arange(12))  # shuffled, then restored
    assert mask.dtype == jnp.float32 and set(np.unique(mask)) == {0, 1} and keep.dtype == jnp.int32
    for ratio in (0.99, -0.5):
        with pytest.raises(UserError, match="mask_ratio"):
            losses.random_masking(jnp.asarray(noise), ratio)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_mae(norm_pix_loss):
    rng = np.random.default_rng(0)
    images, pred = rng.normal(size=(2, 4, 6, 3)), rng.normal(size=(2, 6, 12))
    mask = np.array([[1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0]], float)
    errors = []
    for b in range(2):
        for n in range(6):
            row, column = divmod(n, 3)
            target = images[b, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].ravel()
            if norm_pix_loss:
                target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            if mask[b, n]:
                errors.append(np.mean((pred[b, n] - target) ** 2))
    f32 = [jnp.asarray(a, jnp.float32) for a in (pred, images, mask)]
    loss = lambda p: losses.mae(p, *f32[1:], patch_size=2, norm_pix_loss=norm_pix_loss)  # noqa: E731
    np.testing.assert_allclose(loss(f32[0]), np.mean(errors), rtol=1e-5)
    assert not jax.grad(loss)(f32[0])[mask == 0].any()  # visible patches are not learned from


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_video_mae(norm_pix_loss):
    rng = np.random.default_rng(0)
    videos, mask = rng.uniform(size=(2, 4, 4, 6, 3)), np.array([[1, 0] * 6, [1, 1, 0, 0] * 3])
    pred, errors = rng.normal(size=(2, 12, 24)), []
    for b in range(2):
        for n in range(12):
            time, row, column = n // 6, n % 6 // 3, n % 3
            patch = videos[b, 2 * time : 2 * time + 2, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(8, 3)
            if norm_pix_loss:
                patch = (patch - patch.mean(0)) / (patch.std(0, ddof=1) + 1e-6)
            if mask[b, n]:
                errors.append(np.mean((pred[b, n] - patch.ravel()) ** 2))
    f32 = [jnp.asarray(a, jnp.float32) for a in (pred, videos)]
    got = losses.video_mae(*f32, jnp.asarray(mask, bool), patch_size=2, tubelet=2, norm_pix_loss=norm_pix_loss)
    np.testing.assert_allclose(got, np.mean(errors), rtol=1e-5)
    with pytest.raises(UserError, match="tubelet=3"):
        losses.video_mae_target(f32[1], patch_size=2, tubelet=3, norm_pix_loss=norm_pix_loss)


def test_simmim_refuses_a_mask_of_another_size():
    images = jnp.zeros((1, 4, 6, 3))
    with pytest.raises(UserError, match="does not cover"):
        losses.simmim(images, images, jnp.zeros((1, 2, 2)), patch_size=2)


def test_data2vec_target():
    layers = np.random.default_rng(0).normal(size=(2, 3, 5, 4)) + 1

    def standard(x, axes):
        return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)

    expected = standard(np.mean([standard(standard(x, (0, 1)), (2,)) for x in layers], axis=0), (1,))
    f32 = jnp.asarray(layers, jnp.float32)
    got = losses.data2vec_target(f32, norms=("batch", "layer"), norms_after=("instance",))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    mask = jnp.ones((3, 5))
    assert not jax.grad(lambda x: losses.data2vec(jnp.zeros((3, 5, 4)), losses.data2vec_target(x), mask))(f32).any()
    with pytest.raises(UserError, match="'group'"):
        losses.data2vec_target(f32, norms=("group",))


def test_ijepa_with_several_context_blocks():
    rng = np.random.default_rng(0)
    features, masks = rng.normal(size=(2, 6, 4)), rng.integers(0, 6, size=(3, 2, 2))
    predictions, errors = rng.normal(size=(3, 2, 2, 2, 4)), []  # (T, C, B, M, D)
    unit = (features - features.mean(-1, keepdims=True)) / np.sqrt(features.var(-1, keepdims=True) + 1e-5)
    for t, c, b, m in np.ndindex(3, 2, 2, 2):
        d = np.abs(predictions[t, c, b, m] - unit[b, masks[t, b, m]])
        errors.append(np.mean(np.where(d < 1, d**2 / 2, d - 0.5)))
    targets = losses.ijepa_targets(jnp.asarray(features, jnp.float32), jnp.asarray(masks))
    np.testing.assert_allclose(losses.ijepa(jnp.asarray(predictions, jnp.float32), targets), np.mean(errors), rtol=1e-5)
