"""Config files: ml_collections in, checked and built objects out. A key that nobody reads raises, before a device is touched."""

import ast
import dataclasses
import difflib
import importlib.util
import json
import pathlib
import re

import ml_collections

from ssljax import faults, fields, method, optim, schedules, sharding
from ssljax.augment import Group
from ssljax.errors import UserError
from ssljax.fields import arg


# ---------------------------------------------------------------------------------------------------- what a config holds
@dataclasses.dataclass(frozen=True)
class Data:
    source: str = arg("scenes/plain", "tfds:NAME, folder:PATH, arrayrecord:PATH, tar:GLOB, mix:0.7*A+0.3*B, scenes/plain or scenes/photo")
    train: str = arg("train", "split to train on, as TFDS spells it, e.g. train[:90%]")
    test: str = arg("test", "split to evaluate on")
    label: str = arg("label", "field that kNN and the linear probe predict")
    caption: str = arg("", "field with the text, for image-text methods")
    tokenizer: str = arg("", "bytes, words:V, bpe:V:SOURCE, clip:PATH, sentencepiece:PATH, tokenizers:PATH (see ssljax/data/text.py)")
    knowledge: str = arg("", "JSON file {word: what it means}, added to captions and prompts that have the word (K-Lite)")
    image_size: int = arg(224, "side in pixels of an image for evaluation, and of whole images with crop=device")
    resize_ratio: float = arg(1.0, "evaluation: short side is resized to image_size * this, then the centre is cut")
    crop: str = arg("host", "where views are cut: host (large images, one decode) or device (small images of one size)")
    threads: int = arg(0, "host threads that read and decode; 0: as many as there is work for")
    prefetch: int = arg(2, "batches that may wait on the devices")
    bad_share: float = arg(0.05, "largest share of broken images before the run stops; each is masked and listed in bad_examples.jsonl")
    mean: tuple = arg((0.485, 0.456, 0.406), "subtracted from pixels in [0, 1]")
    std: tuple = arg((0.229, 0.224, 0.225), "pixels are divided by it")
    features: str = arg("", "what its records are like, for --shrink, e.g. 'n=64,height=300-500,width=300-500,classes=1000,words=3-8'")


@dataclasses.dataclass(frozen=True)
class Optim:
    name: str = arg("adamw", "adamw, sgd, lars, lamb, lion or muon")
    clip_norm: float = arg(0.0, "largest global gradient norm; 0: no clipping")
    ema: float = arg(0.0, "momentum of an average of weights and batch statistics, which evaluations then take; 0: none")
    layer_decay: float = arg(0.0, "learning rate factor from each block to the one below; 0: none")
    layer_decay_norm: str = arg("head", "whose factor the norm behind the blocks takes: head (MAE) or block, the last one's (timm)")


@dataclasses.dataclass(frozen=True)
class Log:
    every: int = arg(10, "steps between lines of metrics")
    wandb: str = arg("", "Weights & Biases project; empty: none")
    reference: str = arg("", "a run's workdir, or a .json of bands (tests/curves/), that the loss is held against; empty: none")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    every: int = arg(1000, "steps between checkpoints; the last step is always saved")
    keep: int = arg(2, "how many of the latest to keep")
    keep_every: int = arg(0, "checkpoints at multiples of so many steps are never deleted; 0: none")
    best: str = arg("", "number of an evaluation, e.g. knn_top1: checkpoints with the highest are kept as well; empty: none")
    keep_best: int = arg(1, "how many of them")


@dataclasses.dataclass(frozen=True)
class Evals:
    every: int = arg(0, "steps between evaluations during training; 0: none")
    names: tuple = arg(("knn",), "evaluators to run during training")
    train_examples: int = arg(4096, "at most so many labelled training images for evaluators; 0: all")
    test_examples: int = arg(0, "at most so many test images; 0: all")
    batch: int = arg(256, "images in a batch of feature extraction")
    masks: str = arg("scenes/masks", "pictures with masks, for segmentation and objects: scenes/masks or tfds:NAME (data/dense.py)")
    depth: str = arg("scenes/layers", "pictures with depth: scenes/layers or tfds:NAME")
    video: str = arg("scenes/moving", "videos with masks of objects: scenes/moving or tfds:NAME")


@dataclasses.dataclass(frozen=True)
class Init:
    checkpoint: str = arg("", "a workdir of train.py or convert.py whose weights the run starts from; empty: a fresh start")
    drop: str = arg("", "regular expression of parameters that are not taken from it, e.g. '/out/|^head/'")


SECTIONS = {"init": Init, "data": Data, "optim": Optim, "log": Log, "checkpoint": Checkpoint, "evals": Evals}
TOP = {
    "seed": (0, "all randomness comes from this"),
    "steps": (1000, "optimizer steps"),
    "batch": (256, "global batch"),
    "accumulate": (1, "take the batch in so many parts, one after the other, each with a loss of its own"),
    "microbatch": (0, "examples that are encoded at a time, under a loss over the whole batch; 0: all. Less memory, a third more compute"),
    "nan": ("halt", "what a non-finite loss or gradient does: halt, or skip:K, which passes over up to K such steps in a row"),
}
FREE = {
    "mesh": "devices along data, fsdp, tensor; -1: all that are left",
    "sharding": "((regex, axes), ...) for parameters that the default does not suit",
    "groups": "((regex, {lr, weight_decay, freeze_until}), ...)",
}


def make(*, method, optim, augment, data=None, **rest):
    """The ConfigDict of a run from the parts that a config file states; all other keys take their defaults.

    method: {"name": ..., fields}. optim: {"name", "lr": schedule, "weight_decay": schedule or number, ..., optimizer's own}.
    augment: {group: fields of augment.Group}. rest: seed, steps, batch, accumulate, microbatch, mesh, sharding, log, checkpoint, evals.
    """
    known = {**TOP, **FREE, **SECTIONS}
    fields.check_keys(rest, known, "", "a config")
    out = {key: rest.get(key, default) for key, (default, _) in TOP.items()}
    sections = {"data": data or {}, **rest}
    for name, cls in SECTIONS.items():
        if name != "optim":
            out[name] = fields.expand(cls, sections.get(name, {}), name)
    out["method"] = _expand_method(method)
    out["augment"] = {name: fields.expand(Group, group, f"augment.{name}") for name, group in augment.items()}
    defaults = {f.name: f.default for f in dataclasses.fields(Optim)}
    out["optim"] = {**defaults, "weight_decay": {"kind": "constant", "value": 0.0}, **optim}
    for key in ("lr", "weight_decay"):
        if isinstance(out["optim"].get(key), (int, float)):
            out["optim"][key] = {"kind": "constant", "value": float(out["optim"][key])}
    out["mesh"] = {"data": -1, "fsdp": 1, "tensor": 1, **rest.get("mesh", {})}
    out["sharding"] = tuple(rest.get("sharding", ()))
    out["groups"] = tuple(rest.get("groups", ()))
    return ml_collections.ConfigDict(out)


def _expand_method(spec):
    cls, own = method.find(spec["name"]), {k: v for k, v in spec.items() if k != "name"}
    out = {"name": spec["name"], **fields.expand(cls, own, "method")}
    for key in _sums(cls):
        out[key] = {name: _expand_term(name, dict(term), f"method.{key}.{name}") for name, term in dict(out[key]).items()}
    return out


def _sums(cls):
    """Names of the fields that hold methods, the terms of a sum."""
    return [name for name, field in fields.fields(cls).items() if "methods" in field.metadata]


def _expand_term(name, term, where):
    if "encoder" in term:
        raise UserError(f"config.{where}.encoder: terms share the encoder of the sum, config.method.encoder")
    weight = term.pop("weight", 1.0)
    return {"weight": weight} | {k: v for k, v in fields.expand(method.find(name), term, where).items() if k != "encoder"}


def _build_method(spec):
    cls = method.find(spec["name"])
    spec = {k: v for k, v in spec.items() if k != "name"}
    for key in _sums(cls):
        terms, built = spec.get(key), []
        if not isinstance(terms, dict) or not terms:
            raise UserError(f"config.method.{key}={terms!r}: expected at least one method, as {{name: {{'weight': 1.0, its fields}}}}")
        for name, term in terms.items():
            where = f"method.{key}.{name}"
            if not isinstance(term, dict) or type(term.get("weight")) not in (int, float):
                raise UserError(f"config.{where}={term!r}: expected the fields of a method, and its weight, a number")
            own = {k: v for k, v in term.items() if k != "weight"} | {"encoder": spec.get("encoder")}
            built.append((name, float(term["weight"]), fields.build(method.find(name), own, where)))
        spec[key] = tuple(built)
    return fields.build(cls, spec, "method")


def parse(argument, **defaults):
    """The part of `--config FILE:a=1,b=x` after the colon -> ConfigDict of `defaults` with those values, typed like them."""
    out = dict(defaults)
    for item in filter(None, (argument or "").split(",")):
        key, equals, value = item.partition("=")
        fields.check_keys([key], defaults, "<argument>", "this config's argument")
        kind = type(defaults[key])
        try:
            out[key] = (value.lower() in ("1", "true", "") if kind is bool else kind(value)) if equals or kind is bool else None
        except ValueError:
            out[key] = None
        if out[key] is None:
            raise UserError(f"config argument {item!r}: expected {key}={kind.__name__}")
    return ml_collections.ConfigDict(out)


def load(path, argument=""):
    """A config file's `get_config(argument)`. Raises UserError for a missing file or one without get_config."""
    file = pathlib.Path(path)
    if not file.is_file():
        there = [p.name for p in pathlib.Path(file.parent).glob("*.py")]
        near = ", ".join(difflib.get_close_matches(file.name, sorted(there), n=8, cutoff=0.0)) or "none"
        raise UserError(f"--config {path}: no such file; of {len(there)} configs there the closest: {near}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config {path}: the file has no get_config(arg)")
    return module.get_config(argument)


def override(config, key, text):
    """Set `key` ("method.temperature") of a ConfigDict from a command line's text, typed like the value that is there."""
    *parents, last = key.split(".")
    node = config
    for depth, name in enumerate([*parents, last]):
        if not isinstance(node, ml_collections.ConfigDict):
            raise UserError(f"--config.{key}: config.{'.'.join(key.split('.')[:depth])} is a value and has no keys")
        if name not in node:
            fields.check_keys([name], dict(node.items()), ".".join(key.split(".")[:depth]) or "", "this config")
        parent, node = node, node[name]
    if isinstance(node, ml_collections.ConfigDict):
        raise UserError(f"--config.{key}={text}: it is a section; give one of its keys: {', '.join(node)}")
    try:
        value = text if isinstance(node, str) else ast.literal_eval(text.capitalize() if isinstance(node, bool) else text)
        if isinstance(node, tuple) and not isinstance(value, (tuple, list)):
            value = (value,)
        fits = isinstance(value, type(node)) or (isinstance(node, float) and type(value) is int) or node is None
        if not fits or (isinstance(value, bool) and not isinstance(node, bool)):
            raise ValueError
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # what literal_eval may raise
        raise UserError(f"--config.{key}={text}: expected {type(node).__name__}, like {node!r}") from None
    parent[last] = type(node)(value) if node is not None else value


def to_dict(config):
    """ConfigDict -> plain JSON-able dict (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict(), default=list))


def from_dict(values):
    """The inverse of `to_dict`, as stored in a checkpoint. Raises UserError for what can be no config."""
    try:
        return ml_collections.ConfigDict(values)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the stored config is damaged: {error}") from None


# ---------------------------------------------------------------------------------------------------- what a run is made of
@dataclasses.dataclass(frozen=True)
class Built:
    """A config, checked: the objects that `train.py` and `evaluate.py` work with."""

    init: Init
    method: object
    groups: dict  # augment.Group by name
    data: Data
    log: Log
    checkpoint: Checkpoint
    evals: Evals
    optim: dict
    lr: dict
    weight_decay: dict
    rules: tuple


def build(config):
    """ConfigDict -> Built. Touches no device and no data. Raises UserError naming the key, the value and what was expected."""
    values = config.to_dict()
    _check_form(values)
    for key, (default, _) in TOP.items():
        if type(values[key]) is not type(default):
            raise UserError(f"config.{key}={values[key]!r}: expected {type(default).__name__}")
    for key in ("steps", "batch", "accumulate"):
        if values[key] < 1:
            raise UserError(f"config.{key}={values[key]}: expected at least 1")
    if values["batch"] % values["accumulate"]:
        raise UserError(f"config.batch={values['batch']} does not divide by config.accumulate={values['accumulate']}")
    part = values["batch"] // values["accumulate"]
    if values["microbatch"] < 0 or (values["microbatch"] and part % values["microbatch"]):
        raise UserError(f"config.microbatch={values['microbatch']}: expected 0, or a number that divides the {part} examples of a part")
    faults.skips(values["nan"])
    sharding.check_axes(values["mesh"])
    sections = {k: fields.build(c, values[k], k) for k, c in SECTIONS.items() if k != "optim"}
    if sections["data"].crop not in ("host", "device"):
        raise UserError(f"config.data.crop={sections['data'].crop!r}: expected host or device")
    _check_checkpoint(sections["checkpoint"], sections["evals"])
    for key, good, expected in (
        ("threads", sections["data"].threads >= 0, "at least 0"),
        ("prefetch", sections["data"].prefetch >= 1, "at least 1"),
        ("bad_share", 0 <= sections["data"].bad_share <= 1, "a share, 0 to 1"),
    ):
        if not good:
            raise UserError(f"config.data.{key}={getattr(sections['data'], key)}: expected {expected}")
    groups = {k: fields.build(Group, v, f"augment.{k}") for k, v in values["augment"].items()}
    for name, group in groups.items():
        for key in ("blur", "solarize"):
            if len(getattr(group, key)) not in (1, group.count):
                raise UserError(f"config.augment.{name}.{key}={getattr(group, key)}: expected one probability or {group.count}, one a view")
    spec = dict(values["method"])
    if not isinstance(spec.get("name"), str):
        raise UserError(f"config.method.name={spec.get('name')!r}: expected the name of a file in ssljax/methods/")
    built = _build_method(spec)
    optimizer = dict(values["optim"])
    if "lr" not in optimizer:
        raise UserError("config.optim.lr is missing: a schedule, e.g. {'kind': 'cosine', 'base': 1e-3, 'warmup_steps': 100}")
    lr, weight_decay = optimizer.pop("lr"), optimizer.pop("weight_decay")
    optimizer = {f.name: f.default for f in dataclasses.fields(Optim)} | optimizer
    fields.build(Optim, {f.name: optimizer[f.name] for f in dataclasses.fields(Optim)}, "optim")
    try:
        optim.check(optimizer["name"], set(optimizer) - {f.name for f in dataclasses.fields(Optim)})
    except UserError as error:
        raise UserError(f"config.optim: {error}") from None
    for spec, where in ((lr, "optim.lr"), (weight_decay, "optim.weight_decay")):
        try:
            schedules.make(spec, values["steps"])
        except UserError as error:
            raise UserError(f"config.{where}: {error}") from None
    rules = tuple((pattern, fields.build(optim.Rule, rule, "groups")) for pattern, rule in values["groups"])
    return Built(method=built, groups=groups, optim=optimizer, lr=lr, weight_decay=weight_decay, rules=rules, **sections)


def _check_form(values):
    """Every key there, none more, and sections where sections should be: what a stored or generated config may lack."""
    sections = dict.fromkeys((*SECTIONS, "method", "augment", "mesh"), dict)
    known = {**TOP, **FREE, **sections}
    fields.check_keys(values, known, "", "a config")
    for key in known:
        if key not in values:
            raise UserError(f"config.{key} is missing: a config made by config.make(...) has it")
        kind = sections.get(key) or ((tuple, list) if key in FREE else None)
        if kind and not isinstance(values[key], kind):
            what = "a section, keys and values" if kind is dict else "a tuple"
            raise UserError(f"config.{key}={values[key]!r}: expected {what}")
    for key in ("sharding", "groups"):
        kind = dict if key == "groups" else (str, tuple, list)
        for rule in values[key]:
            if not (isinstance(rule, (tuple, list)) and len(rule) == 2 and isinstance(rule[0], str) and isinstance(rule[1], kind)):
                raise UserError(f"config.{key}: {rule!r}: expected (regex, {'{...}' if kind is dict else 'axes'})")
            try:
                re.compile(rule[0])
            except re.error as error:
                raise UserError(f"config.{key}: {rule[0]!r} is no regular expression: {error}") from None
    for key in ("name", "lr", "weight_decay"):
        if key not in values["optim"]:
            raise UserError(f"config.optim.{key} is missing")


def _check_checkpoint(checkpoint, evals):
    for key, least in (("every", 1), ("keep", 1), ("keep_every", 0), ("keep_best", 1)):
        if getattr(checkpoint, key) < least:
            raise UserError(f"config.checkpoint.{key}={getattr(checkpoint, key)}: expected at least {least}")
    if checkpoint.keep_every % checkpoint.every:
        raise UserError(f"config.checkpoint.keep_every={checkpoint.keep_every}: expected a multiple of checkpoint.every={checkpoint.every}")
    if checkpoint.best and (not evals.every or evals.every % checkpoint.every):
        raise UserError(
            f"config.checkpoint.best={checkpoint.best!r} needs evaluations of what is saved: config.evals.every={evals.every} should be "
            f"a multiple of config.checkpoint.every={checkpoint.every}"
        )


# What a run may change when it goes on: how long, how it is watched, how it lies on devices. The source's name too: its fingerprint is
# compared in its place, so that a folder may have moved.
RESUMABLE = (
    *("steps", "init", "log", "checkpoint", "evals", "mesh", "sharding", "microbatch", "nan"),
    *("data.source", "data.test", "data.label", "data.features", "data.threads", "data.prefetch", "data.bad_share"),
)


def differences(stored, now):
    """Two dicts of `to_dict` -> list of "key: stored value, value now" for every key that a resumed run may not change."""

    def flat(values, where=""):
        for key, value in values.items():
            path = f"{where}.{key}" if where else key
            if path not in RESUMABLE:
                yield from flat(value, path) if isinstance(value, dict) else [(path, value)]

    stored, now = dict(flat(stored)), dict(flat(now))
    keys = [key for key in {**stored, **now} if stored.get(key, "absent") != now.get(key, "absent")]
    return [f"config.{key}: {stored.get(key, 'absent')!r}, now {now.get(key, 'absent')!r}" for key in keys]


def describe(config):
    """(key path, value, one line of help) for every key; what `--help` prints."""
    values = config.to_dict()
    rows = [(key, values[key], help) for key, (_, help) in TOP.items()]
    spec = dict(values["method"])
    name = spec.pop("name")
    cls = method.find(name)
    rows.append(("method.name", name, (cls.__doc__ or "").strip().splitlines()[0]))
    for key in _sums(cls):
        for term, own in spec.pop(key).items():
            rows.append((f"method.{key}.{term}.weight", own.pop("weight"), "weight of this method's loss in the sum"))
            rows += fields.describe(method.find(term), own, f"method.{key}.{term}")
    rows += fields.describe(cls, spec, "method")
    for key, section in SECTIONS.items():
        rows += fields.describe(section, values[key], key)
    rows += [(f"optim.{k}", v, "schedule") for k, v in values["optim"].items() if k in ("lr", "weight_decay")]
    known = {f.name for f in dataclasses.fields(Optim)} | {"lr", "weight_decay"}
    rows += [(f"optim.{k}", v, f"{values['optim']['name']}'s own") for k, v in values["optim"].items() if k not in known]
    for group, spec in values["augment"].items():
        rows += fields.describe(Group, spec, f"augment.{group}")
    rows += [(key, values[key], help) for key, help in FREE.items()]
    return rows


# ------------------------------------------------------------------------------------------------------- the common switch
SHRINK = dict(width=32, depth=2, heads=2, mlp_dim=64, hidden=32, bottleneck=16, out=24, length=12, vocab_size=512, queue=32)
SHRINK |= dict(examples=1024, prototypes=32, clusters=32, directions=32)


def shrink(config):
    """The same run as a toy: narrow, shallow, two steps, a batch of 8, small views; every other setting stays as it is.

    With synthesised records (`data.features`) it answers "does this config run?" anywhere in seconds.
    """
    values = config.to_dict()
    side = 4 * values["method"].get("encoder", {}).get("patch_size", 8)  # 4 x 4 patches: the least that laws of masking make sense on

    def walk(node):
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value)
            elif key in SHRINK and isinstance(value, int):
                node[key] = min(value, SHRINK[key])
            elif key == "stages":
                node[key] = (1,) * len(value)
            elif key == "image_size" or (key == "size" and node.get("name") == "image_decoder"):
                node[key] = side
            elif key == "grid":
                node[key] = (4, 4)

    walk(values["method"])
    values["data"]["image_size"] = side
    values["data"]["source"] = "synthetic:" + values["data"]["features"]
    values["data"]["label"] = "label"  # what a synthesised record calls it
    values["data"]["caption"] = "caption" if values["data"]["caption"] else ""
    tower = next((m["text"] for m in (values["method"], *values["method"].get("terms", {}).values()) if m.get("text")), None)
    encoder = values["method"].get("encoder", {})
    if tower and tower.get("out") and encoder.get("name") == "vit" and not encoder["out"]:
        tower["out"] = encoder["width"]  # pictures and texts meet in the image tower's own width
    if tower and values["data"]["tokenizer"] != "bytes":
        values["data"]["tokenizer"] = f"words:{tower['vocab_size']}"
    largest = max((group["size"] for group in values["augment"].values()), default=0)
    for group in values["augment"].values():
        group["size"] = side if group["size"] == largest else side // 2
    values.update(batch=8, accumulate=1, microbatch=0, mesh={"data": -1, "fsdp": 1, "tensor": 1})
    values["log"] |= {"every": 1, "wandb": ""}
    values["evals"]["every"] = 0
    return with_steps(ml_collections.ConfigDict(values), 2)


def with_steps(config, steps):
    """The same run at another length, its warm-up and cool-down cut to half of it where they are longer."""
    config = config.copy_and_resolve_references()
    config.steps = steps
    for schedule in (config.optim.lr, config.optim.weight_decay):
        for key in schedule:
            if key.endswith("_steps"):
                schedule[key] = min(schedule[key], steps // 2)
    return config
