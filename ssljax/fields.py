"""Hyper-parameters are dataclass fields with a line of help; a dict from a config becomes the dataclass, or a clear error."""

import dataclasses
import difflib
import typing

from ssljax.errors import UserError

_FLAX = ("parent", "name")  # fields that Flax adds to every module


def arg(default, help, one_of=()):
    """A dataclass field with a default and one line of help, which `--help` prints. one_of: the only values that a config may give it."""
    return dataclasses.field(default=default, metadata={"help": help, "one_of": tuple(one_of)})


def dtype():
    """The field of a model that names what it computes in."""
    return arg("float32", "compute dtype: float32 or bfloat16; parameters and statistics are float32", one_of=("float32", "bfloat16"))


def module(help, **spec):
    """A field that holds a Flax module, given in a config as {"name": ..., its fields}. `spec` is the default."""
    return dataclasses.field(default=None, metadata={"help": help, "module": spec})


def methods(help):
    """A field that holds methods, in a config {name: {"weight": ..., its fields}}; config.py builds ((name, weight, method), ...) of it."""
    return dataclasses.field(default=(), metadata={"help": help, "methods": True})


def fields(cls):
    """Name -> field, without those that Flax adds."""
    return {f.name: f for f in dataclasses.fields(cls) if f.name not in _FLAX or "help" in f.metadata}


def expand(cls, spec, where):
    """dict of some fields -> dict of all fields, defaults filled in, so that every one can be overridden. Raises UserError."""
    known = fields(cls)
    check_keys(spec, known, where, cls.__name__)
    out = {}
    for name, f in known.items():
        if "module" in f.metadata:
            inner = dict(f.metadata["module"], **{}) if name not in spec else dict(spec[name])
            if "name" not in inner:
                inner = {"name": f.metadata["module"]["name"], **inner}
            if not inner["name"]:
                raise UserError(f"config.{where}.{name} is missing: a {cls.__name__} needs it, e.g. {name}=vit.size('S/16')")
            out[name] = {"name": inner["name"]} | expand(
                _module_class(inner["name"], f"{where}.{name}"), _unnamed(inner), f"{where}.{name}"
            )
        else:
            default = f.default if f.default is not dataclasses.MISSING else f.default_factory()
            out[name] = spec.get(name, default)
    return out


def build(cls, spec, where):
    """dict of fields -> instance of `cls`, nested modules built. Raises UserError for unknown keys, wrong types, values not of `one_of`."""
    known = fields(cls)
    check_keys(spec if isinstance(spec, dict) else None, known, where, cls.__name__)
    hints = typing.get_type_hints(cls)
    values = {}
    for name in known:
        if "module" in known[name].metadata and name not in spec:
            raise UserError(f"config.{where}.{name} is missing: {known[name].metadata['help']}")
    for name, value in spec.items():
        if "module" in known[name].metadata:
            if not isinstance(value, dict) or not isinstance(value.get("name"), str):
                raise UserError(f"config.{where}.{name}={value!r}: expected a section with the name of a model and its fields")
            values[name] = build(_module_class(value["name"], f"{where}.{name}"), _unnamed(value), f"{where}.{name}")
        else:
            values[name] = _typed(value, hints.get(name), f"{where}.{name}")
            allowed = known[name].metadata.get("one_of")
            if allowed and values[name] not in allowed:
                raise UserError(f"config.{where}.{name}={value!r}: expected one of {', '.join(map(str, allowed))}")
    return cls(**values)


def check_keys(spec, known, where, owner):
    """Raises UserError for the first key of `spec` that is not in `known`, naming the nearest; or if `spec` is no dict or list of keys."""
    if not isinstance(spec, (dict, list)):
        raise UserError(f"config.{where}={spec!r}: expected a section of {owner}: {', '.join(sorted(known))}")
    for key in spec:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(f"config.{where}{'.' if where else ''}{key}: {owner} has no such key; {hint}It has: {', '.join(sorted(known))}")


def describe(cls, spec, where):
    """(key path, value, help) for every field, nested modules included; what `--help` lists."""
    rows = []
    for name, f in fields(cls).items():
        if name not in spec:
            continue
        path, value = f"{where}.{name}", spec[name]
        if "module" in f.metadata:
            rows.append((f"{path}.name", value["name"], f.metadata["help"]))
            rows += describe(_module_class(value["name"]), _unnamed(value), path)
        else:
            rows.append((path, value, f.metadata.get("help", "")))
    return rows


def _unnamed(spec):
    return {k: v for k, v in spec.items() if k != "name"}


def _module_class(name, where=""):
    from ssljax import models  # not at the top: models' own files take `arg` from here

    try:
        return models.module_class(name)
    except UserError as error:
        raise UserError(f"config.{where}: {error}") from None


def _typed(value, hint, where):
    if hint is tuple and isinstance(value, (tuple, list)):
        return tuple(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool):
        if type(value) is not hint:
            raise UserError(f"config.{where}={value!r}: expected {hint.__name__}, got {type(value).__name__}")
    elif hint in (float, tuple):
        raise UserError(f"config.{where}={value!r}: expected {hint.__name__}, got {type(value).__name__}")
    return value
