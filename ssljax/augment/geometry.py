"""Crop, resize and flip of an image that is already on the device: two small matrix products a view. Boxes to erase."""

import jax
import jax.numpy as jnp


def crop_box(key, height, width, scale, ratio):
    """RandomResizedCrop's law (Szegedy et al. 2015; torchvision): ten draws of area and log-uniform ratio, the first that fits.

    -> top, left, box height, box width in pixels, float32. If none of the ten fits: the largest central box of an allowed ratio.
    """
    r = jax.random.split(key, 4)
    area = height * width * jax.random.uniform(r[0], (10,), minval=scale[0], maxval=scale[1])
    aspect = jnp.exp(jax.random.uniform(r[1], (10,), minval=jnp.log(ratio[0]), maxval=jnp.log(ratio[1])))
    w, h = jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)
    fits = (w <= width) & (h <= height)
    first = jnp.argmax(fits)
    whole = jnp.clip(width / height, ratio[0], ratio[1])
    fallback_w, fallback_h = jnp.minimum(width, height * whole), jnp.minimum(height, width / whole)
    w = jnp.where(fits.any(), w[first], fallback_w)
    h = jnp.where(fits.any(), h[first], fallback_h)
    at = jnp.where(fits.any(), jax.random.uniform(r[2], (2,)), 0.5)
    return at[0] * (height - h), at[1] * (width - w), h, w


def resize_matrix(start, length, source, target):
    """(target, source) weights of a bilinear resize of pixels [start, start + length) to `target`, antialiased when it shrinks."""
    step = length / target
    centres = start + (jnp.arange(target) + 0.5) * step - 0.5
    distance = jnp.abs(jnp.arange(source)[None, :] - centres[:, None])
    weights = jnp.maximum(0.0, 1.0 - distance / jnp.maximum(step, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def random_resized_crop(key, image, group):
    """image float32 (H, W, 3) -> (size, size, 3), cropped, resized and flipped as `group` says."""
    height, width, _ = image.shape
    box_key, flip_key = jax.random.split(key)
    top, left, h, w = crop_box(box_key, height, width, group.scale, group.ratio)
    rows = resize_matrix(top, h, height, group.size)
    columns = resize_matrix(left, w, width, group.size)
    columns = jnp.where(jax.random.uniform(flip_key) < group.flip, columns[::-1], columns)
    return jnp.einsum("yh,hwc,xw->yxc", rows, image, columns, precision="highest")


def view_box(key, height, width, group):
    """Where `random_resized_crop` with this key cuts: y0, x0, y1, x1 of the view's first and last corner in shares of the image's sides,
    float32 (4,); x0 > x1 where it is flipped."""
    box_key, flip_key = jax.random.split(key)
    top, left, h, w = crop_box(box_key, height, width, group.scale, group.ratio)
    box = jnp.stack([top / height, left / width, (top + h) / height, (left + w) / width])
    return jnp.where(jax.random.uniform(flip_key) < group.flip, box[jnp.array([0, 3, 2, 1])], box)


def erase_box(key, height, width, scale, ratio):
    """RandomErasing's law (Zhong et al. 2017; torchvision): of ten draws of area and log-uniform height / width, the first smaller than
    the image, whole pixels, at a uniform place. -> top, left, bottom, right, int32; an empty box if none of the ten fits.
    """
    r = jax.random.split(key, 3)
    area = height * width * jax.random.uniform(r[0], (10,), minval=scale[0], maxval=scale[1])
    aspect = jnp.exp(jax.random.uniform(r[1], (10,), minval=jnp.log(ratio[0]), maxval=jnp.log(ratio[1])))
    h, w = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits)
    h, w = jnp.where(fits.any(), h[first], 0), jnp.where(fits.any(), w[first], 0)
    at = jax.random.uniform(r[2], (2,))
    top, left = jnp.floor(at[0] * (height - h + 1)), jnp.floor(at[1] * (width - w + 1))
    return [side.astype(jnp.int32) for side in (top, left, top + h, left + w)]


def inside(box, height, width):
    """bool (height, width, 1): which pixels lie in a box of top, left, bottom, right."""
    top, left, bottom, right = box
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return ((rows >= top) & (rows < bottom) & (columns >= left) & (columns < right))[..., None]


def erase(key, x, group, chance):
    """RandomErasing of one normalised view (S, S, 3), as the reference recipes order it: 0 is the mean colour, noise is N(0, 1) a value."""
    chance_key, box_key, noise_key = jax.random.split(key, 3)
    height, width, _ = x.shape
    box = erase_box(box_key, height, width, group.erase_scale, group.erase_ratio)
    value = jax.random.normal(noise_key, x.shape) if group.erase_noise else 0.0
    return jnp.where(inside(box, height, width) & (jax.random.uniform(chance_key) < chance), value, x)


def tiles(key, images, *, side, gap):
    """A random square of each cell of a `side` x `side` grid, row by row: (B, H, W, C) -> (B, side^2, s, s, C), s = (1 - gap) of a cell.

    gap: share of a cell's side that is left out at random, so that edges give nothing away.
    """
    cell = min(images.shape[1:3]) // side
    inner = max(round(cell * (1 - gap)), 1)
    cells = cell * jnp.stack(jnp.meshgrid(jnp.arange(side), jnp.arange(side), indexing="ij"), axis=-1).reshape(-1, 2)
    corners = cells + jax.random.randint(key, (len(images), side**2, 2), 0, cell - inner + 1)
    cut = lambda image, corner: jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (inner, inner, image.shape[-1]))  # noqa: E731
    return jax.vmap(jax.vmap(cut, in_axes=(None, 0)))(images, corners)
