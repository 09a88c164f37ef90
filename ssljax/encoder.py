"""A checkpoint as a frozen encoder: a function from pictures to features, in two lines and without TensorFlow.

    encode = ssljax.load("runs/simclr")
    features = encode(images)              # uint8 (N, H, W, 3), or float in [0, 1], of any size -> float32 (N, D)

The pictures are resized, cut and normalised as the checkpoint's config says; batches are spread over all devices.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import augment, layouts, method, models
from ssljax.errors import UserError


def restore(workdir, step=None):
    """-> Encoder of a workdir of train.py or convert.py, or its checkpoints folder (local or gs://). Raises UserError if there is none."""
    from ssljax import checkpoint, program
    from ssljax import config as configs

    checkpoints = checkpoint.Checkpoints(checkpoint.locate(workdir)[1], read_only=True)
    step = checkpoints.latest() if step is None else step
    config = configs.from_dict(checkpoints.config(step))
    built = configs.build(config)
    abstract = {}
    for name, leaf in checkpoints.shapes(step).items():
        if name.startswith(("params/", "extra/")):
            layouts.put(abstract, name, leaf)
    stored = checkpoints.restore_parts(abstract, step)
    # What is empty (a tower without batch statistics) is not stored, but its place is the method's to look at.
    blank = jax.eval_shape(augment.make(built.groups, seed=0, mean=(0.0,) * 3, std=(1.0,) * 3), program.example(built))
    zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blank)  # noqa: E731
    try:
        _, extra = jax.eval_shape(lambda: built.method.init(jax.random.PRNGKey(0), zeros()))
    except UserError:  # an encoder of videos or spectrograms: there to be converted, not to be called on pictures
        extra = {}
    params, kept = method.averaged(stored["params"], stored.get("extra", {}))
    kept = _filled(extra, {name: value for name, value in kept.items() if name != "average"})
    return Encoder(built, params, kept, checkpoints.info(step) or {}, step)


def _filled(like, stored):
    """`stored` with the empty dicts of `like`."""
    if not isinstance(like, dict):
        return stored
    return {key: _filled(value, stored.get(key, {}) if isinstance(stored, dict) else stored) for key, value in like.items()} | {
        key: value for key, value in stored.items() if key not in like
    }


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A restored method, called on pictures."""

    built: Any
    params: Any
    extra: Any
    info: dict
    step: int

    @property
    def size(self):
        """Side of the pictures that the encoder takes, pixels."""
        return self.built.data.image_size

    def preprocess(self, images):
        """uint8 or float [0, 1] (N, H, W, 3) -> float32 (N, size, size, 3), normalised: the short side resized, the centre cut."""
        if images.ndim != 4 or images.shape[-1] != 3:
            raise UserError(f"images of shape {images.shape}: expected (N, H, W, 3), the colours last")
        images = images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images.astype(jnp.float32)
        height, width = images.shape[1:3]
        short = round(self.size * self.built.data.resize_ratio)
        scale = short / min(height, width)
        new = (max(round(height * scale), self.size), max(round(width * scale), self.size))
        if new != (height, width):
            images = jax.image.resize(images, (len(images), *new, 3), "bilinear", antialias=True)
        top, left = (new[0] - self.size) // 2, (new[1] - self.size) // 2
        images = images[:, top : top + self.size, left : left + self.size]
        return augment.normalise(images, self.built.data.mean, self.built.data.std)

    @functools.cached_property
    def _embed(self):
        return jax.jit(lambda params, extra, images: self.built.method.embed(params, extra, {"image": self.preprocess(images)}))

    def __call__(self, images, *, batch=256, name="features"):
        """uint8 or float [0, 1] (N, H, W, 3) -> numpy float32 (N, D). batch: pictures at a time. name: which of the method's outputs
        ("image_embedding" of an image-text method, say)."""
        mesh = jax.make_mesh((jax.device_count(),), ("data",), (jax.sharding.AxisType.Auto,))
        spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        images = np.asarray(images)
        size = -(-min(batch, max(len(images), 1)) // mesh.size) * mesh.size
        rows = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
            out = self._embed(self.params, self.extra, jax.device_put(padded, spread))
            if name not in out:
                raise UserError(f"name={name!r}: this method gives {', '.join(out)}")
            rows.append(np.asarray(out[name], np.float32)[: len(part)])
        return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)

    def outputs(self, images, **kwargs):
        """All that the encoder gives of prepared images, float32 (N, size, size, 3): {"tokens", "patches", "pooled", ...}."""
        tree = self.public_tree()
        stats = tree.get("stats", {}).get("encoder", {})
        return models.apply(self.built.method.encoder, tree["encoder"], stats, jnp.asarray(images), train=False, **kwargs)[0]

    def public_tree(self, *, student=False):
        """The parameters as layouts have them: {"encoder": ..., "stats": {"encoder": ...}}; a teacher's, where there is one."""
        teacher = isinstance(self.extra.get("teacher"), dict) and not student
        tree = dict(self.extra["teacher"] if teacher else self.params)
        stats = self.extra.get("teacher_stats" if teacher else "stats", {})
        stats = {part: value for part, value in stats.items() if value}
        return {**tree, **({"stats": stats} if stats else {})}

    def fields(self):
        """{part: fields of its model} of the method's models, as a config has them."""
        from ssljax import fields
        from ssljax.models import MODULES

        names = {f"{file}:{cls}": name for name, (file, cls) in MODULES.items()}
        out = {}
        for part in self.built.method.__dataclass_fields__:
            module = getattr(self.built.method, part)
            key = f"{type(module).__module__}:{type(module).__name__}"
            if key in names:
                out[part] = {"name": names[key]} | {f: getattr(module, f) for f in fields.fields(type(module))}
        return out
