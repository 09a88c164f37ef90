"""Public checkpoints in our words: one file a code base here; each layout is a table of rules that is read in both directions.

A rule says which arrays of a public file are which of our parameters, and how one becomes the other: transposed, split into heads, layers
stacked. Nothing but axes moves, so a file read and written again is the same file, bit for bit.

    layout = layouts.find("hf", config, shapes)            # a Layout; UserError if none fits
    params = layouts.read(layout, arrays)                  # {"encoder": tree, ..., "stats": tree}
    arrays = layouts.write(layout, params)

A file here defines NAMES ({family: function}): `function(config, shapes) -> Layout`, config a dict (config.json, constructor settings or
{}), shapes {name: shape} of the file.
"""

import dataclasses
import difflib
import importlib
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ssljax.errors import UserError

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLIP = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))

ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu", "swish": "silu",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rule:
    """theirs: names in the file, "{i}" for a layer; ours: names in our tree, "encoder/transformer/blocks/norm1/scale".
    read: their arrays -> tuple of ours; write: ours -> tuple of theirs. layers: how many, stacked on axis 0 of ours; 0: none."""

    theirs: tuple
    ours: tuple
    read: Callable
    write: Callable
    layers: int = 0

    def names(self):
        """Their names, layer by layer."""
        return [[name.format(i=i) for name in self.theirs] for i in range(self.layers)] if self.layers else [list(self.theirs)]


@dataclasses.dataclass(frozen=True)
class Layout:
    """modules: {part: fields of a model, as a config has them, and "example", inputs made by `inputs`, where the model alone does not
    know them}, or {part: {"shape": of a plain array}}; rules; buffers: regexes of names in a file that are no parameters;
    method: what the converted checkpoint's config calls its method; normalise: mean and std of the pixels; name: "hf:vit"."""

    modules: dict
    rules: tuple
    buffers: tuple = (r"position_ids$", r"num_batches_tracked$", r"relative_position_index$", r"relative_coords_table$")
    method: dict = dataclasses.field(default_factory=lambda: {"name": "supervised"})
    normalise: dict = dataclasses.field(default_factory=lambda: dict(IMAGENET))
    name: str = ""


def inputs(*shapes, ids=(), **more):
    """Example inputs of a model: zeros of these shapes, those whose position is in `ids` integers. -> args, kwargs."""
    return tuple(np.zeros(shape, np.int32 if i in ids else np.float32) for i, shape in enumerate(shapes)), {
        key: np.zeros(shape, np.float32) for key, shape in more.items()
    }


# ------------------------------------------------------------------------------------------------------------------- rules
def same(theirs, ours, layers=0):
    """The same array."""
    return [Rule((theirs,), (ours,), lambda x: (x,), lambda x: (x,), layers)]


def shaped(theirs, ours, their_shape, our_shape, layers=0):
    """The same numbers in another shape."""
    return [Rule((theirs,), (ours,), lambda x: (x.reshape(our_shape),), lambda x: (x.reshape(their_shape),), layers)]


def _bias(theirs, ours, layers):
    return same(f"{theirs}.bias", f"{ours}/bias", layers)


def linear(theirs, ours, layers=0, bias=True):
    """torch's (out, in) -> (in, out)."""
    rule = Rule((f"{theirs}.weight",), (f"{ours}/kernel",), lambda w: (w.T,), lambda w: (w.T,), layers)
    return [rule, *(_bias(theirs, ours, layers) if bias else [])]


def conv(theirs, ours, layers=0, bias=False):
    """torch's (out, in, [time,] row, column) -> ([time,] row, column, in, out)."""

    def read(w):
        return (np.moveaxis(w, (0, 1), (-1, -2)),)

    def write(w):
        return (np.moveaxis(w, (-1, -2), (0, 1)),)

    return [Rule((f"{theirs}.weight",), (f"{ours}/kernel",), read, write, layers), *(_bias(theirs, ours, layers) if bias else [])]


def norm(theirs, ours, layers=0):
    """LayerNorm's weight and bias -> scale and bias."""
    return [*same(f"{theirs}.weight", f"{ours}/scale", layers), *_bias(theirs, ours, layers)]


def batch_norm(theirs, ours, layers=0):
    """BatchNorm's weight, bias and running statistics; ours: "encoder/bn1", with statistics under "stats/encoder/bn1"."""
    statistics = [
        *same(f"{theirs}.running_mean", f"stats/{ours}/mean", layers),
        *same(f"{theirs}.running_var", f"stats/{ours}/var", layers),
    ]
    return [*norm(theirs, ours, layers), *statistics]


def heads_in(theirs, ours, heads, layers=0, biases=None):
    """len(theirs) linear layers (D, C) fused -> one kernel (C, n, H, D / H). biases: their full names, "" where there is none; default:
    each layer's. Ours is "qkv/bias" (n, H, D / H) of all, or "qv_bias" of those there are."""
    count = len(theirs)
    biases = [f"{name}.bias" for name in theirs] if biases is None else biases
    there = tuple(name for name in biases if name)
    parent = ours.rpartition("/")[0]

    def read(*w):
        kernel = np.stack([x.T for x in w], axis=1)  # (C, n, D)
        return (_one(kernel.reshape(*kernel.shape[:2], heads, -1)),)

    def write(w):
        w = w.reshape(w.shape[0], count, -1)
        return tuple(w[:, i].T for i in range(count))

    def _one(kernel):
        return kernel if count > 1 else kernel[:, 0]

    def read_bias(*b):
        stacked = np.stack([x.reshape(heads, -1) for x in b])
        return (stacked if count > 1 else stacked[0],)

    def write_bias(b):
        return tuple(b.reshape(len(there), -1))

    rules = [Rule(tuple(f"{name}.weight" for name in theirs), (f"{ours}/kernel",), read, write, layers)]
    if there:
        name = f"{ours}/bias" if len(there) == count else f"{parent}/qv_bias"
        rules.append(Rule(there, (name,), read_bias, write_bias, layers))
    return rules


def heads_fused(weight, bias, ours, heads, layers=0, count=3, split=None):
    """One linear layer (count * D, C) -> kernel (C, count, H, D / H). weight, bias: their full names; bias "": none.

    split: ((name, slice of the `count`), ...) where ours are several, e.g. nn.MultiHeadDotProductAttention's query, key, value."""
    split = split or ((ours, slice(None)),)

    def read(w):
        kernel = w.T.reshape(w.shape[1], count, heads, -1)
        return tuple(kernel[:, part] for _, part in split)

    def write(*kernels):
        kernels = [k if k.ndim == 4 else k[:, None] for k in kernels]
        kernel = np.concatenate(kernels, axis=1)
        return (kernel.reshape(kernel.shape[0], -1).T,)

    def read_bias(b):
        b = b.reshape(count, heads, -1)
        return tuple(b[part] for _, part in split)

    def write_bias(*biases):
        return (np.concatenate([b.reshape(-1) for b in biases]),)

    rules = [Rule((weight,), tuple(f"{name}/kernel" for name, _ in split), read, write, layers)]
    return rules + ([Rule((bias,), tuple(f"{name}/bias" for name, _ in split), read_bias, write_bias, layers)] if bias else [])


def heads_out(theirs, ours, heads, layers=0):
    """The linear layer behind attention (D, D) -> kernel (H, D / H, D)."""

    def read(w):
        return (w.T.reshape(heads, -1, w.shape[0]),)

    def write(w):
        return (w.reshape(-1, w.shape[-1]).T,)

    return [Rule((f"{theirs}.weight",), (f"{ours}/kernel",), read, write, layers), *_bias(theirs, ours, layers)]


def position_table(theirs, ours, prefix=("cls_position",), flat=False):
    """One table ([1,] P + N, D) -> a position of each prefix token (1, 1, D) and "pos_embed" (1, N, D)."""
    count = len(prefix)
    names = (*(f"{ours}/{name}" for name in prefix), f"{ours}/pos_embed")

    def read(table):
        table = table.reshape(1, *table.shape[-2:])
        return (*(table[:, i : i + 1] for i in range(count)), table[:, count:])

    def write(*parts):
        table = np.concatenate(parts, axis=1)
        return (table[0] if flat else table,)

    return [Rule((theirs,), names, read, write)]


def gated_fused(theirs, ours, layers=0):
    """SwiGLU's one layer to [gate, value] -> "gate" and "fc1"."""

    def write(gate, value):
        return (np.concatenate([gate, value], axis=-1).T,)

    def write_bias(gate, value):
        return (np.concatenate([gate, value], axis=-1),)

    names = (f"{ours}/gate", f"{ours}/fc1")
    return [
        Rule((f"{theirs}.weight",), tuple(f"{n}/kernel" for n in names), lambda w: tuple(np.split(w.T, 2, axis=-1)), write, layers),
        Rule((f"{theirs}.bias",), tuple(f"{n}/bias" for n in names), lambda b: tuple(np.split(b, 2)), write_bias, layers),
    ]


# --------------------------------------------------------------------------------------------------------------- both ways
def read(layout, arrays):
    """{their name: numpy array} -> our tree of numpy arrays. Raises UserError naming keys that are missing, left over or misshapen."""
    check_names(layout, arrays)
    tree, expected = {}, shapes(layout)
    for rule in layout.rules:
        try:
            each = [rule.read(*(arrays[name] for name in names)) for names in rule.names()]
            ours = [np.stack(parts) if rule.layers else parts[0] for parts in zip(*each, strict=True)]
        except ValueError as error:
            raise UserError(f"{', '.join(f'{n}{list(arrays[n].shape)}' for n in rule.names()[0])} of the file: {error}") from None
        for name, array in zip(rule.ours, ours, strict=True):
            if expected.get(name) != array.shape:
                theirs = ", ".join(f"{n}{list(arrays[n].shape)}" for n in rule.names()[0])
                raise UserError(
                    f"{theirs} of the file becomes {name}{list(array.shape)}, where the model has {list(expected.get(name, ()))}"
                )
            put(tree, name, np.asarray(array, order="C"))
    unset = set(expected) - {name for rule in layout.rules for name in rule.ours}
    assert not unset, f"layout {layout.name} says nothing of {sorted(unset)}"
    return tree


def check_names(layout, names):
    """Raises UserError unless a file with these names has all that the layout asks for, and nothing more but buffers."""
    wanted = [name for rule in layout.rules for each in rule.names() for name in each]
    missing = [name for name in wanted if name not in names]
    over = sorted(name for name in set(names) - set(wanted) if not any(re.search(pattern, name) for pattern in layout.buffers))
    if missing or over:
        raise UserError(f"the file does not have the layout {layout.name}: {_spell('missing', missing)}; {_spell('unknown', over)}")


def write(layout, tree):
    """The inverse of `read`; buffers are not there."""
    flat, arrays = dict(flatten(tree)), {}
    for rule in layout.rules:
        ours = [np.asarray(flat[name]) for name in rule.ours]
        for i, names in enumerate(rule.names()):
            theirs = rule.write(*(x[i] for x in ours)) if rule.layers else rule.write(*ours)
            arrays |= {name: np.asarray(x, order="C") for name, x in zip(names, theirs, strict=True)}
    return arrays


def put(tree, name, leaf):
    """Sets tree["a"]["b"] for name "a/b"."""
    *parents, last = name.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = leaf


def flatten(tree, where=""):
    """Nested dict -> (name, leaf), ..."""
    for key, value in tree.items():
        name = f"{where}/{key}" if where else key
        yield from flatten(value, name) if isinstance(value, dict) else [(name, value)]


def modules(layout):
    """{part: Flax module} of a layout; parts that are plain arrays ("logit_scale") are not among them."""
    from ssljax import fields, models

    return {
        part: fields.build(models.module_class(spec["name"]), fields.expand(models.module_class(spec["name"]), _unnamed(spec), part), part)
        for part, spec in layout.modules.items()
        if "name" in spec
    }


def _unnamed(spec):
    return {k: v for k, v in spec.items() if k not in ("name", "example")}


def shapes(layout):
    """{our name: shape} that the layout's modules have."""
    import jax

    from ssljax import models

    out = {}
    for part, module in modules(layout).items():
        example = layout.modules[part].get("example")
        args, kwargs = example or module.example()
        params, stats = jax.eval_shape(lambda m=module, a=args, k=kwargs: models.init(m, jax.random.PRNGKey(0), *a, train=False, **k))
        out |= {f"{part}/{name}": leaf.shape for name, leaf in flatten(params)}
        out |= {f"stats/{part}/{name}": leaf.shape for name, leaf in flatten(stats)}
    out |= {part: tuple(spec["shape"]) for part, spec in layout.modules.items() if "shape" in spec}
    return out


def _spell(what, names):
    return f"{what}: {', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}" if names else f"nothing {what}"


# --------------------------------------------------------------------------------------------------------------- families
def known():
    """{"hf:vit": function, ...}: what the files here define."""
    found: dict[str, Any] = {}
    for file in sorted(pathlib.Path(__file__).parent.glob("[a-z]*.py")):
        module = importlib.import_module(f"{__name__}.{file.stem}")
        found |= getattr(module, "NAMES", {})
    return found


def make(name, config, shapes):
    """The Layout called `name` ("hf:vit") for a file. Raises UserError for one that is not known, or a config that lacks a key."""
    functions = known()
    if name not in functions:
        near = difflib.get_close_matches(name, functions, n=3, cutoff=0.3)
        raise UserError(f"no layout is called {name!r}; near it: {', '.join(near) or 'nothing'}; there are {', '.join(functions)}")
    try:
        return dataclasses.replace(functions[name](config, shapes), name=name)
    except KeyError as error:
        raise UserError(f"layout {name}: the configuration or the file lacks {error}") from None


class Inexpressible(Exception):
    """A model of ours that a code base has no form for, and why."""


# Fields that change how a model is computed, not what it computes.
FREE = ("dtype", "remat", "drop_path", "image_size", "table", "resize", "frames", "mask_token", "rope_theta", "layer_scale")


def export(kind, parts, tree):
    """Our models, {part: fields}, and parameters -> Layout, config.json as a dict, arrays, for the code base `kind`.

    A file here offers EXPORTS {kind: (function(parts, tree) -> name, config, parts, tree, rules)}. What comes out is read again and must
    be the same model with the same parameters. Raises UserError with each family's reason if none can express it."""
    reasons = []
    for file in sorted(pathlib.Path(__file__).parent.glob("[a-z]*.py")):
        for function in getattr(importlib.import_module(f"{__name__}.{file.stem}"), "EXPORTS", {}).get(kind, ()):
            try:
                name, config, own, leaves, rules = function(parts, tree)
                arrays = write(Layout(own, tuple(rules), name=name), leaves)
                again = make(name, config, {key: array.shape for key, array in arrays.items()})
                _same_models(own, again.modules)
                stored, back = dict(flatten(leaves)), dict(flatten(read(again, arrays)))
                lost = [key for key, array in back.items() if key in stored and not np.array_equal(stored[key], array)]
                assert not lost, f"{name} does not bring back {lost}"
                return again, config, arrays
            except Inexpressible as reason:
                reasons.append(f"{function.__name__}: {reason}")
    raise UserError(f"--to {kind}: none of its families can express this model; {'; '.join(reasons) or 'there is no exporter for that'}")


def _same_models(ours, theirs):
    from ssljax import fields, models

    for part, spec in theirs.items():
        if "name" not in spec:
            continue
        cls = models.module_class(spec["name"])
        a, b = (fields.expand(cls, _unnamed(each), part) for each in (ours[part], spec))
        differ = [key for key in a if key not in FREE and a[key] != b[key]]
        if differ:
            raise Inexpressible(", ".join(f"{part}.{key}={a[key]!r} (it has {b[key]!r})" for key in differ))


def base(shapes, *prefixes):
    """The first of `prefixes` ("vit.") that names of the file begin with, else ""."""
    return next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in shapes)), "")
