"""Public weights in, public weights out.

python -m ssljax.convert --from hf:DIR --out runs/vit          # a folder of transformers -> a checkpoint that evaluate.py and train.py take
python -m ssljax.convert --from timm:FILE --set num_heads=6 --out runs/vit
python -m ssljax.convert --checkpoint runs/vit --to hf --out exported              # and back: safetensors, with a config.json

Kinds: hf (transformers: config.json and safetensors), timm (also the papers' DINO, DINOv2, MAE, DeiT, MoCo v3 files), open_clip (OpenAI's
CLIP as well), big_vision (npz), ijepa. Only local files are read: .safetensors, .npz without pickle, .pt and .pth by torch with
weights_only=True. --check runs the public implementation beside ours, where torch and transformers or timm are installed.
"""

import hashlib
import json
import pathlib
import re

import numpy as np
from absl import flags

from ssljax import cli, layouts
from ssljax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("from", "", "KIND:PATH, a file or folder of public weights", flag_values=FLAGS)
flags.DEFINE_string("checkpoint", "", "a workdir of train.py or convert.py, to be exported", flag_values=FLAGS)
flags.DEFINE_string("to", "", "what to export to: hf, timm, open_clip or big_vision", flag_values=FLAGS)
flags.DEFINE_string("out", "", "the folder to write: a checkpoint's, or with --to the exported files'", flag_values=FLAGS)
flags.DEFINE_string("layout", "", "the family, e.g. hf:dinov2, where the files do not tell; --layout=? lists them", flag_values=FLAGS)
flags.DEFINE_list("set", [], "KEY=NUMBER of a configuration that the files lack, e.g. num_heads=6", flag_values=FLAGS)
flags.DEFINE_string(
    "part", "", "of a .pth with several, which: teacher, student, model, ...; default: the first there is", flag_values=FLAGS
)
flags.DEFINE_bool("student", False, "export the student of a run that has a teacher", flag_values=FLAGS)
flags.DEFINE_bool("check", False, "compare with the public implementation, if it is installed", flag_values=FLAGS)

PARTS = ("teacher", "student", "state_dict", "model", "model_ema", "module")  # what a .pth calls the weights in it


# ----------------------------------------------------------------------------------------------------------------- files
def read_arrays(path, part=""):
    """A file or folder -> {name: numpy array}; half-precision floats come as float32. Raises UserError for what is none or is damaged."""
    path = pathlib.Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.npz")) or sorted([*path.glob("*.bin"), *path.glob("*.pth")])
        if not files:
            raise UserError(
                f"{path} holds no .safetensors, .npz, .bin or .pth file; it has {', '.join(sorted(p.name for p in path.iterdir())[:8])}"
            )
        arrays = {}
        for file in files:  # shards
            arrays |= read_arrays(file, part)
        return arrays
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: _plain(file[name]) for name in file.files}
        if path.suffix in (".pt", ".pth", ".bin"):
            return _torch(path, part)
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from None
    raise UserError(f"{path}: expected .safetensors, .npz, .pt, .pth or .bin")


def _plain(array):
    return np.asarray(array, np.float32) if array.dtype.kind == "V" or array.dtype.itemsize == 2 else np.asarray(array)


def _safetensors(path):
    from safetensors import SafetensorError
    from safetensors.flax import load_file

    try:
        return {name: _plain(np.asarray(x)) for name, x in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(error) from None


def _torch(path, part):
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(f"{path} is torch's own format: install torch to read it, or convert it to safetensors first") from None
    import pickle

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise UserError(f"{path} holds more than weights, and nothing else is read: {' '.join(str(error).split())[:200]}") from None
    names = [part] if part else [name for name in PARTS if isinstance(loaded.get(name), dict)]
    if part and part not in loaded:
        raise UserError(f"--part={part}: {path} has {', '.join(map(str, list(loaded)[:20]))}")
    loaded = loaded[names[0]] if names else loaded
    flat = {}

    def walk(tree, where):
        for name, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{where}{name}.")
            elif isinstance(value, torch.Tensor):
                flat[f"{where}{name}"] = value.float().numpy() if value.is_floating_point() else value.numpy()

    walk(loaded, "")
    return flat


def unwrap(arrays):
    """Names without what wraps them in files of training runs: DistributedDataParallel's "module.", a "backbone." in front of all."""
    arrays = {name.replace("module.", ""): array for name, array in arrays.items()}
    backbone = {name.removeprefix("backbone."): array for name, array in arrays.items() if name.startswith("backbone.")}
    return backbone or arrays


def read_json(folder, name):
    path = pathlib.Path(folder) / name
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from None


# -------------------------------------------------------------------------------------------------------------------- in
def recognise(kind, config, arrays, name=""):
    """-> the Layout of these arrays and our tree of them. Raises UserError telling what differs from the nearest known layout."""
    shapes = {key: tuple(array.shape) for key, array in arrays.items()}
    known = layouts.known()
    kinds = sorted({each.partition(":")[0] for each in known})
    if kind not in kinds:
        raise UserError(f"--from {kind}:...: expected one of {', '.join(kinds)}")
    family = str(config.get("model_type", ""))
    names = [name] if name else [f"hf:{family}"] if kind == "hf" else [each for each in known if each.startswith(f"{kind}:")]
    problems = {}
    for each in names:
        try:
            layout = layouts.make(each, config, shapes)
            return layout, layouts.read(layout, arrays)
        except UserError as error:
            problems[each] = str(error)
    # The nearest is the one whose complaint names a file's key, not the absence of its first.
    nearest = min(problems, key=lambda each: "lacks" in problems[each])
    raise UserError(f"no known layout fits; nearest is {nearest}. {problems[nearest]}")


def load_public(spec, *, name="", settings=(), part=""):
    """KIND:PATH -> layout, tree, the configuration beside the file, arrays."""
    kind, _, path = spec.partition(":")
    path = pathlib.Path(path).expanduser()
    if kind == "dino":
        kind = "timm"
    folder = path if path.is_dir() else path.parent
    config = read_json(folder, "config.json") or read_json(folder, "open_clip_config.json")
    config = config.get("model_cfg", config) | dict(settings)
    arrays = read_arrays(path, part)
    arrays = unwrap(arrays) if kind == "timm" else arrays
    return *recognise(kind, config, arrays, name), config, arrays


def preprocessing(folder, layout, config):
    """-> mean, std, image size: the files' own, or what the layout's family uses."""
    own = read_json(folder, "preprocessor_config.json") | config.get("pretrained_cfg", {})
    mean, std = own.get("image_mean", own.get("mean")), own.get("image_std", own.get("std"))
    encoder = layout.modules.get("encoder", {})
    return tuple(mean or layout.normalise["mean"]), tuple(std or layout.normalise["std"]), encoder.get("image_size", 224)


def our_config(layout, mean, std, size, tokenizer=""):
    """The config of the checkpoint: the method that the layout names with its models, and how pictures are prepared for it."""
    from ssljax import config as configs
    from ssljax import method

    known = {f for f in method.find(layout.method["name"]).__dataclass_fields__}
    parts = {
        part: {k: v for k, v in spec.items() if k != "example"} for part, spec in layout.modules.items() if part in known and "name" in spec
    }
    text = dict(tokenizer=tokenizer or f"words:{layout.modules['text']['vocab_size']}", caption="caption") if "text" in parts else {}
    return configs.make(
        steps=1,
        batch=8,
        method={**layout.method, **parts},
        data=dict(source="scenes/photo", label="photograph", image_size=size, mean=mean, std=std, features="n=64,classes=14", **text),
        augment={"views": dict(count=1, size=size)},
        optim=dict(name="adamw", lr=1e-4),
    )


def copy_tokenizer(folder, out):
    """The tokenizer's files beside the checkpoint -> its spec for config.data.tokenizer, or ""."""
    for name, spec in (
        ("tokenizer.json", "tokenizers:{}"),
        ("spiece.model", "sentencepiece:{}"),
        ("bpe_simple_vocab_16e6.txt.gz", "clip:{}"),
    ):
        if (folder / name).is_file():
            target = out / "tokenizer" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((folder / name).read_bytes())
            return spec.format(target.resolve())
    return ""


def bring_in(spec, out, **options):
    """Public weights -> a checkpoint in `out`. -> the Layout."""
    from ssljax import checkpoint
    from ssljax import config as configs

    layout, tree, config, arrays = load_public(spec, **options)
    out, path = pathlib.Path(out), pathlib.Path(spec.partition(":")[2]).expanduser()
    folder = path if path.is_dir() else path.parent
    ours = our_config(layout, *preprocessing(folder, layout, config), copy_tokenizer(folder, out))
    configs.build(ours)
    stats = tree.pop("stats", {})
    state = {"params": tree, "extra": {"stats": stats}}
    buffers = [name for name in arrays if any(re.search(pattern, name) for pattern in layout.buffers)]
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.asarray(arrays[name], order="C").tobytes())
    kept = {name: arrays[name].tolist() for name in buffers if arrays[name].size <= 1024}  # counts, so that the way back is the same file
    about = {
        "buffers": kept,
        "layout": layout.name,
        "public_config": config,
        "shapes": {k: list(v.shape) for k, v in arrays.items()},
        "sha256": digest.hexdigest(),
    }
    checkpoints = checkpoint.Checkpoints(out / "checkpoints")
    checkpoints.save(0, state, configs.to_dict(ours), about)
    checkpoints.close()
    count = sum(x.size for _, x in layouts.flatten(tree))
    print(f"{layout.name}: {count / 1e6:.2f} M parameters of {len(arrays)} arrays ({len(buffers)} buffers left out) -> {out}")
    print(f"  python -m ssljax.evaluate --checkpoint {out}")
    return layout


# ------------------------------------------------------------------------------------------------------------------- out
def send_out(workdir, kind, out, *, student=False):
    """A checkpoint -> safetensors and config.json (npz for big_vision) in `out`. Raises UserError for what that code base lacks."""
    from safetensors.numpy import save_file

    from ssljax import encoder

    loaded = encoder.restore(workdir)
    tree = loaded.public_tree(student=student)
    about = loaded.info
    if str(about.get("layout", "")).startswith(f"{kind}:"):
        name, config = about["layout"], about["public_config"]
        layout = layouts.make(name, config, {k: tuple(v) for k, v in about["shapes"].items()})
        arrays = layouts.write(layout, tree) | {name: np.array(value, np.int64) for name, value in about.get("buffers", {}).items()}
    else:
        layout, config, arrays = layouts.export(kind, loaded.fields(), tree)
        norms = [name.removesuffix("running_var") for name in arrays if name.endswith("running_var")]
        arrays |= {f"{name}num_batches_tracked": np.array(loaded.step, np.int64) for name in norms}  # torch looks for it
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if kind == "big_vision":
        np.savez(out / "weights.npz", **arrays)
    else:
        save_file(arrays, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1))
    print(f"{layout.name}: {len(arrays)} arrays -> {out}")
    return layout


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    if FLAGS.layout == "?":
        print("\n".join(layouts.known()))
        return
    given = vars_of()
    if not given["out"]:
        raise UserError("--out is missing: the folder to write")
    if bool(given["from"]) == bool(given["checkpoint"]):
        raise UserError("give either --from KIND:PATH, to bring public weights in, or --checkpoint DIR --to KIND, to send ours out")
    if given["checkpoint"]:
        if not given["to"]:
            raise UserError("--to is missing: hf, timm, open_clip or big_vision")
        send_out(given["checkpoint"], given["to"], given["out"], student=given["student"])
        if given["check"]:
            check(f"{given['to']}:{given['out']}", given["checkpoint"])
        return
    if ":" not in given["from"]:
        raise UserError(f"--from {given['from']}: expected KIND:PATH, e.g. hf:DIR")
    bring_in(given["from"], given["out"], name=given["layout"], settings=_settings(given["set"]), part=given["part"])
    if given["check"]:
        check(given["from"], given["out"])


def vars_of():
    return {name: FLAGS[name].value for name in FLAGS}


def _settings(words):
    out = {}
    for word in words:
        key, equals, value = word.partition("=")
        try:
            out[key] = json.loads(value)
        except ValueError:
            out[key] = value
        if not equals:
            raise UserError(f"--set {word}: expected KEY=VALUE")
    return tuple(out.items())


# ----------------------------------------------------------------------------------------------------------------- check
def check(spec, workdir):
    """Runs the public implementation and ours on the same noise and prints the largest difference, in units of the largest output."""
    from ssljax import encoder

    kind, _, path = spec.partition(":")
    try:
        if kind not in ("hf", "timm"):
            raise CannotCheck(f"{kind} has no implementation that its files alone can start; the tests compare them")
        import torch

        tower, against = (_transformers if kind == "hf" else _timm)(pathlib.Path(path).expanduser())
    except ModuleNotFoundError as error:
        print(f"not checked: {error.name} is not installed")
        return None
    except CannotCheck as error:
        print(f"not checked: {error}")
        return None
    ours = encoder.restore(workdir)
    images = np.random.default_rng(0).normal(size=(2, ours.size, ours.size, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = tower(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    outputs = ours.outputs(images)
    theirs = theirs.reshape(*theirs.shape[:2], -1).transpose(0, 2, 1) if theirs.ndim == 4 else theirs
    got = next((x for x in map(outputs.get, ("tokens", "patches")) if x is not None and x.shape == theirs.shape), None)
    if got is None:
        print(f"not checked: {against} gives {theirs.shape} where ours gives { {k: v.shape for k, v in outputs.items()} }")
        return None
    worst = float(np.abs(np.asarray(got, np.float32) - theirs).max() / np.abs(theirs).max())
    print(f"checked against {against}: largest difference {worst:.1e} of the largest output")
    return worst


class CannotCheck(Exception):
    """Why there is nothing to compare with."""


def _transformers(path):
    import transformers

    model = transformers.AutoModel.from_pretrained(path).eval()
    tower = next((getattr(model, name) for name in ("vision_model", "image_model") if hasattr(model, name)), model)
    return lambda pixels: tower(pixels).last_hidden_state, f"transformers {transformers.__version__}"


def _timm(path):
    """timm's model of the name in the config.json beside the weights, as timm's own hub writes it."""
    import timm
    import torch

    config = read_json(path if path.is_dir() else path.parent, "config.json")
    if "architecture" not in config:
        raise CannotCheck('no config.json beside the file names timm\'s "architecture"')
    model = timm.create_model(config["architecture"], pretrained=False, num_classes=0, **config.get("model_args", {})).eval()
    arrays = {name: torch.from_numpy(np.array(array)) for name, array in unwrap(read_arrays(path)).items()}
    missing = model.load_state_dict(arrays, strict=False).missing_keys
    if missing:
        raise CannotCheck(f"timm's {config['architecture']} has {', '.join(missing[:4])}, which the file lacks")
    return model.forward_features, f"timm {timm.__version__}"


if __name__ == "__main__":
    cli.command(main)
