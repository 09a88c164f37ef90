"""Augmentation on the device: raw uint8 batches in, normalised float32 views out, every draw keyed by (seed, epoch, example).

Views depend on the example alone: not on the batch it came in, the device it lies on or the number of hosts.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssljax.augment import geometry, photometric, policies
from ssljax.errors import UserError
from ssljax.fields import arg


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of views of one size; the group's name in the config is its key in the batch. Probabilities: one, or one a view."""

    count: int = arg(2, "views of each image")
    size: int = arg(224, "side in pixels")
    scale: tuple = arg((0.08, 1.0), "share of the image's area that a crop covers: least, most")
    ratio: tuple = arg((3 / 4, 4 / 3), "width / height of a crop: least, most")
    flip: float = arg(0.5, "probability of a left-right flip")
    boxes: bool = arg(False, "hand over where the views lie in their image as well, as GROUP_box: methods that match patches need it")
    brightness: float = arg(0.0, "factor drawn from [1 - x, 1 + x]")
    contrast: float = arg(0.0, "factor drawn from [1 - x, 1 + x]")
    saturation: float = arg(0.0, "factor drawn from [1 - x, 1 + x]")
    hue: float = arg(0.0, "turn of the colour circle, drawn from [-x, x]; 0.5 is half a turn")
    jitter: float = arg(0.8, "probability that the four above apply")
    grey: float = arg(0.0, "probability of greyscale")
    blur: tuple = arg((0.0,), "probability of a Gaussian blur")
    sigma: tuple = arg((0.1, 2.0), "standard deviation of the blur: least, most, in pixels of a 224-pixel view")
    kernel: float = arg(23.0, "width of the blur's kernel, in pixels of a 224-pixel view")
    solarize: tuple = arg((0.0,), "probability of inverting the pixels above one half")
    posterize: tuple | float = arg((0.0,), "probability of keeping only the highest bits of every value")
    posterize_bits: int = arg(4, "bits that posterize keeps, 1 to 8")
    equalize: tuple | float = arg((0.0,), "probability of equalizing the histogram of every channel")
    autocontrast: tuple | float = arg((0.0,), "probability of stretching every channel to the whole range")
    invert: tuple | float = arg((0.0,), "probability of inverting all values")
    sharpen: tuple | float = arg((0.0,), "probability of a change of sharpness")
    sharpen_factor: float = arg(2.0, "0: smoothed, 1: as it is, 2: sharpened")
    rand_augment: tuple = arg((0, 9), "RandAugment: operations a view (0: none), magnitude")
    rand_augment_law: str = arg("torchvision", "torchvision (14 operations, magnitude 0 to 30) or timm (15, 0 to 10, m-mstd0.5-inc1)")
    auto_augment: bool = arg(False, "AutoAugment's ImageNet policies")
    erase: tuple | float = arg((0.0,), "probability of erasing a random box")
    erase_scale: tuple = arg((0.02, 0.33), "share of the view's area that is erased: least, most")
    erase_ratio: tuple = arg((0.3, 3.3), "height / width of the erased box: least, most")
    erase_noise: bool = arg(False, "erase with Gaussian noise instead of the mean colour")

    def __post_init__(self):
        """Raises UserError for what cannot be; `blur` and `solarize` are checked where the group's name is known, in config.py."""
        for key in ("posterize", "equalize", "autocontrast", "invert", "sharpen", "erase"):
            value = getattr(self, key)
            value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
            number = all(isinstance(p, (int, float)) and 0 <= p <= 1 for p in value)
            if not number or len(value) not in (1, self.count):
                raise UserError(f"config.augment: {key}={getattr(self, key)!r}: expected one probability or {self.count}, one a view")
            object.__setattr__(self, key, value)
        if not 1 <= self.posterize_bits <= 8:
            raise UserError(f"config.augment: posterize_bits={self.posterize_bits}: expected 1 to 8")
        policies.check(self.rand_augment, self.rand_augment_law)


def make(groups, *, seed, mean, std):
    """-> augment(raw batch) -> batch, jittable.

    groups: {name: Group}. A raw batch holds either "image" (uint8 (B, H, W, 3): crops are cut here) or, under each group's name,
    uint8 crops that the host cut (B, V, S, S, 3). Out: float32 (B, V, S, S, 3) under each name; other entries as they came. A group with
    `boxes` adds NAME_box float32 (B, V, 4), `geometry.view_box`, unless the host did.
    """

    def augment(batch):
        key = jax.random.key(seed)
        keys = jax.vmap(lambda epoch, i: jax.random.fold_in(jax.random.fold_in(key, epoch), i))(batch["epoch"], batch["id"])
        out = {k: v for k, v in batch.items() if k not in groups and k != "image"}
        for index, (name, group) in enumerate(groups.items()):
            # (B, V) keys: one a view, whatever else the example is asked for.
            view_keys = jax.vmap(lambda k, i=index, n=group.count: jax.random.split(jax.random.fold_in(k, i), n))(keys)
            crop_keys, colour_keys = jnp.moveaxis(jax.vmap(jax.vmap(jax.random.split))(view_keys), 2, 0)
            if name in batch:
                views = batch[name].astype(jnp.float32) / 255.0
            else:
                image = batch["image"].astype(jnp.float32) / 255.0
                cut = jax.vmap(lambda k, x, g=group: geometry.random_resized_crop(k, x, g), in_axes=(0, None))
                views = jax.vmap(cut)(crop_keys, image)
                if group.boxes:
                    box = lambda k, g=group, side=image.shape[1:3]: geometry.view_box(k, *side, g)  # noqa: E731
                    out[f"{name}_box"] = jax.vmap(jax.vmap(box))(crop_keys)
            chances = {k: _per_view(getattr(group, k), group.count) for k in photometric.CHANCES}
            colour = jax.vmap(lambda k, x, p, g=group: photometric.apply(k, x, g, p))  # over the views
            views = jax.vmap(colour, in_axes=(0, 0, None))(colour_keys, views, chances)
            views = normalise(views, mean, std)
            if any(group.erase):
                erase_keys = jax.vmap(jax.vmap(lambda k: jax.random.fold_in(k, 2)))(view_keys)  # beside the two of the split
                erase = jax.vmap(lambda k, x, p, g=group: geometry.erase(k, x, g, p))
                views = jax.vmap(erase, in_axes=(0, 0, None))(erase_keys, views, _per_view(group.erase, group.count))
            out[name] = views
        return out

    return augment


def normalise(x, mean, std):
    """x in [0, 1], (..., 3) -> (x - mean) / std."""
    return (x - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def to_pixels(x, mean, std):
    """The inverse of `normalise`, clipped and rounded to uint8; for pictures."""
    x = x * jnp.asarray(std, jnp.float32) + jnp.asarray(mean, jnp.float32)
    return jnp.round(jnp.clip(x, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def _per_view(value, count):
    value = value if isinstance(value, tuple) else (value,)
    return jnp.asarray(value * count if len(value) == 1 else value, jnp.float32)
