"""Evaluators, one file each: a file here that defines `run(context) -> {metric: float}` and `NEEDS` is an evaluator,
named by its file.
"""

import importlib
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from ssljax.errors import UserError


class NotApplicable(Exception):
    """An evaluator cannot judge these features; the message says why, and the caller prints it in place of a number."""


@dataclass(frozen=True)
class Context:
    """All an evaluator may look at. Features are extracted once for all of them.

    train, test:  dicts of host arrays as `features.extract` returns them, one row an example: "features" float32 (N,
                  D), "label" int (N,), one "label:<kind>" int (N,) for every further kind of label, and of the test set
                  of image-text methods "image_embedding" and "text_embedding" (N, E), or (N, P, E) and (N, T, E) where
                  a method compares tokens, zeros in place of padding.
    classes:      number of classes of "label".
    text_embed:   list of M strings -> (M, E) or (M, T, E) float32, or None where the method has no text tower.
    class_names:  {kind: [name of class 0, name of class 1, ...]}
    prompts:      {kind: [template with one {} for the class name, ...]}
    seed:         keys every random choice an evaluator makes.
    write:        uint8 pictures (M, H, W, 3) -> M captions, or None where the method writes none.
    look:         uint8 pictures (M, H, W, 3) -> {"features": (M, D), "patches": (M, h, w, D) and "attention": (M, heads, h, w) of the
                  class token, "layers" (M, L, D), the mean token behind each block, where the encoder has them},
                  float32; or None.
    views:        count -> uint8 (M, count, H, W, 3), pictures of the test set as training augments them; or None.
    kept:         what one evaluator has made that another needs too: the linear probe.
    dense:        "masks", "depth" or "video", split -> arrays of data/dense.py; or None.
    """

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    classes: int
    text_embed: Callable[[list[str]], Any] | None = None
    class_names: dict[str, list[str]] = field(default_factory=dict)
    prompts: dict[str, list[str]] = field(default_factory=dict)
    seed: int = 0
    write: Callable[[Any], list[str]] | None = None
    look: Callable[[Any], dict] | None = None
    views: Callable[[int], Any] | None = None
    dense: Callable[[str, str], dict] | None = None
    kept: dict = field(default_factory=dict)


def available() -> list[str]:
    """Names of the evaluators, sorted: the files in this folder that define `run`."""
    files = pathlib.Path(__file__).parent.glob("*.py")
    return sorted(f.stem for f in files if f.stem != "__init__" and "\ndef run(" in f.read_text())


def load(name: str) -> ModuleType:
    """The module of evaluator `name`, with `run(context)` and `NEEDS`. Raises UserError for a name not there."""
    if name not in available():
        raise UserError(f"evals: there is no evaluator {name!r}; choose among {', '.join(available())}")
    return importlib.import_module(f"{__name__}.{name}")


def need(context: Context, *, train: tuple[str, ...] = (), test: tuple[str, ...] = ()) -> None:
    """Raises NotApplicable unless `context` holds these arrays, each with at least one row."""
    for split, keys in (("train", train), ("test", test)):
        arrays = getattr(context, split)
        missing = [key for key in keys if key not in arrays or not len(arrays[key])]
        if missing:
            raise NotApplicable(f"the {split} set gives no {', '.join(missing)}")


def patches_of(context: Context, images) -> np.ndarray:
    """(M, h, w, D) of uint8 pictures. Raises NotApplicable for an encoder that gives no map of patches."""
    return seen_of(context, images, "patches", "the encoder gives no map of patches")


def seen_of(context: Context, images, key: str, lack: str) -> np.ndarray:
    """`context.look(images)[key]`. Raises NotApplicable, saying `lack`, where the encoder does not give it."""
    seen = {} if context.look is None else context.look(images)
    if key not in seen:
        raise NotApplicable(lack)
    return seen[key]


def truth(context: Context, kind: str, split: str) -> dict[str, np.ndarray]:
    """`context.dense(kind, split)`. Raises NotApplicable where there is none."""
    if context.dense is None:
        raise NotApplicable(f"no pictures with {kind} are at hand")
    return context.dense(kind, split)


def judge(names: list[str], context: Context) -> tuple[dict[str, float], dict[str, str]]:
    """Runs evaluators by name -> {metric: number}, {evaluator: why it does not apply}. Raises UserError for an unknown name.

    A metric that is the mean of one number an example comes from its evaluator as the array of them: it is told as that mean, with
    "<metric>_ci95", half the width of its 95 % interval (`bootstrap`)."""
    modules = {name: load(name) for name in names}
    numbers, reasons = {}, {}
    for name, module in modules.items():
        try:
            found = module.run(context)
        except NotApplicable as reason:
            reasons[name] = str(reason)
            continue
        for metric, value in found.items():
            numbers[metric] = float(np.mean(value))
            if np.ndim(value):
                low, high = bootstrap(value, context.seed)
                numbers[f"{metric}_ci95"] = (high - low) / 2
    return numbers, reasons


def bootstrap(values, seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of the mean of `values` (N,), drawn anew `draws` times with replacement (Efron 1979)."""
    values, rng = np.asarray(values, np.float64), np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(draws)]
    return tuple(np.percentile(means, [2.5, 97.5]).tolist())
