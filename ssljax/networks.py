"""What methods are composed of: an encoder with heads in a row, run over views, and a teacher that follows its student.

Parameters and batch statistics are dicts by the names of the parts, {"encoder": ..., "projector": ..., "predictor": ...}, in `params` and
in `extra["stats"]`; a teacher's in `extra["teacher"]` and `extra["teacher_stats"]`.
"""

import jax
import jax.numpy as jnp

from ssljax import models, trees


def init(parts, rng, views):
    """parts: {name: module}, each fed by the one before it. views (B, V, H, W, 3). -> params, statistics, both by name."""
    params, stats = {}, {}
    x = models.flat_views(views)
    for key, (name, module) in zip(jax.random.split(rng, len(parts)), parts.items(), strict=True):
        params[name], stats[name] = models.init(module, key, x, train=False)
        outputs, _ = models.apply(module, params[name], stats[name], x, train=False)
        x = outputs["pooled"] if isinstance(outputs, dict) else outputs
    return params, stats


def forward(parts, params, stats, views, *, rng=None, train=True, **kwargs):
    """One pass over views of one size. kwargs go to the first part. -> {name: outputs (B, V, ...)}, statistics.

    An encoder's outputs are a dict ("pooled", "patches", ...), whose "pooled" the next part takes; a head's are an array."""
    batch, x, outputs, after = views.shape[0], models.flat_views(views), {}, {}
    keys = [None] * len(parts) if rng is None else jax.random.split(rng, len(parts))
    for key, (name, module) in zip(keys, parts.items(), strict=True):
        y, after[name] = models.apply(module, params[name], stats[name], x, train=train, rng=key, **kwargs)
        x, kwargs = (y["pooled"] if isinstance(y, dict) else y), {}
        outputs[name] = jax.tree.map(lambda a: a.reshape(batch, -1, *a.shape[1:]), y)
    return outputs, {**stats, **after}


def over_crops(parts, params, stats, groups, *, rng=None):
    """`forward` over groups of views, each of one size and so one pass: [(B, V, H, W, 3), (B, L, h, w, 3), ...].

    -> the last part's outputs of all (B, V + L + ..., D), statistics after the last pass."""
    last = list(parts)[-1]
    outputs = []
    keys = [None] * len(groups) if rng is None else jax.random.split(rng, len(groups))
    for key, views in zip(keys, groups, strict=True):
        out, stats = forward(parts, params, stats, views, rng=key)
        outputs.append(out[last]["pooled"] if isinstance(out[last], dict) else out[last])
    return jnp.concatenate(outputs, axis=1), stats


def views_of(batch):
    """The groups of views of a multi-crop batch, the large ones first."""
    return [batch[name] for name in ("views", "crops") if name in batch]


def teacher(params, stats, parts=None):
    """-> {"teacher": ..., "teacher_stats": ...} for `extra`: a copy of the student, bit for bit. parts: names to copy; default: all."""
    names = list(params) if parts is None else parts
    return {"teacher": {n: trees.copy(params[n]) for n in names}, "teacher_stats": {n: trees.copy(stats[n]) for n in names}}


def follow(extra, params, momentum):
    """`extra` with the teacher moved: momentum * teacher + (1 - momentum) * student."""
    return {**extra, "teacher": trees.ema(extra["teacher"], {name: params[name] for name in extra["teacher"]}, momentum)}


def features(module, params, stats, images):
    """The pooled features of whole images (B, H, W, 3), in evaluation mode. -> {"features": (B, D)}."""
    outputs, _ = models.apply(module, params["encoder"], stats["encoder"], images, train=False)
    return {"features": outputs["pooled"]}
