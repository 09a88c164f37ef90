"""A run that starts from another's weights: ours, or public ones that convert.py brought in."""

import re

import jax
import numpy as np

from ssljax import trees
from ssljax.errors import UserError
from ssljax.models import positions


def warm_start(state, encoder, drop):
    """`state` with the parameters that a checkpoint has under the same names; what the checkpoint lacks stays as it was made.

    encoder: an `encoder.Encoder`, whose teacher's weights are taken where it has one. drop: regex of parameters that are not taken (heads);
    "" takes all. Tables of positions of another grid are resized by the rule of the model that has them. A teacher of the new run starts
    equal to its student. -> State, {"taken": [names], "resized": [...], "fresh": [...]}.
    Raises UserError for a parameter of another shape that `drop` does not name, and where nothing at all fits.
    """
    public = encoder.public_tree()
    stored = dict(trees.names({k: v for k, v in public.items() if k != "stats"}))
    report = {"taken": [], "resized": [], "fresh": []}
    wrong = []

    def pick(name, leaf):
        found = stored.get(name)
        if found is None or (drop and re.search(drop, name)):
            report["fresh"].append(name)
            return leaf
        if name.endswith("pos_embed") and found.shape != leaf.shape and found.shape[-1] == leaf.shape[-1]:
            old, new = (round(x.shape[-2] ** 0.5) for x in (found, leaf))
            if old * old == found.shape[-2] and new * new == leaf.shape[-2]:
                report["resized"].append(name)
                rule = getattr(encoder.built.method.encoder, "resize", "bicubic")
                found = np.asarray(positions.resize(found, (old, old), (new, new), rule))
        if found.shape != leaf.shape:
            wrong.append(f"{name}: {list(found.shape)} in the checkpoint, {list(leaf.shape)} here")
            return leaf
        report["taken"].append(name)
        return jax.device_put(np.asarray(found, leaf.dtype), leaf.sharding)

    params = trees.map_names(pick, state.params)
    if wrong:
        raise UserError(
            f"config.init.checkpoint has {len(wrong)} parameters of another shape, e.g. {'; '.join(wrong[:4])}: "
            "name those to be left out with config.init.drop, a regular expression, e.g. --config.init.drop='/out/|^head/'"
        )
    if not report["taken"]:
        raise UserError(
            f"config.init.checkpoint has none of this method's parameters: it has {', '.join(list(stored)[:4])} ..., "
            f"the method {', '.join([name for name, _ in trees.names(state.params)][:4])} ..."
        )
    mine = dict(trees.names(params))
    statistics = {f"stats/{k}": v for k, v in trees.names(public.get("stats", {}))}

    def follow(name, leaf):
        """What a teacher, and batch statistics, of the new run start as."""
        own = name.removeprefix("teacher/")
        if own != name and own in mine:
            return jax.device_put(np.asarray(mine[own], leaf.dtype), leaf.sharding)
        found = statistics.get(name.replace("teacher_stats/", "stats/"))
        if found is not None and found.shape == leaf.shape and not (drop and re.search(drop, name)):
            return jax.device_put(np.asarray(found, leaf.dtype), leaf.sharding)
        return leaf

    extra = trees.map_names(follow, state.extra)
    return type(state)(params, extra, state.opt, state.step, state.rng), report
