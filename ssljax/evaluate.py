"""Evaluate checkpoints: what are their frozen features worth? Needs nothing but the checkpoint; any number of devices.

python -m ssljax.evaluate --checkpoint runs/simclr
python -m ssljax.evaluate --checkpoint runs/simclr,runs/siglip --evals knn,linear,zeroshot --report report.html
python -m ssljax.evaluate --checkpoint runs/simclr --data folder:/my/pictures
"""

import hashlib
import io
import json
import pathlib
import sys

import numpy as np
from absl import flags
from etils import epath

from ssljax import cli
from ssljax.errors import UserError

PICTURES = 4096  # of each split that are kept as pixels: for the raw-pixel baseline and the report

FLAGS = flags.FlagValues()
flags.DEFINE_list("checkpoint", [], "workdirs of train.py (or their checkpoints folder), one or several", flag_values=FLAGS)
flags.DEFINE_list(
    "evals", ["knn", "linear", "zeroshot", "retrieval", "rankme"], "evaluators, the files of ssljax/evals/; all", flag_values=FLAGS
)
flags.DEFINE_string("data", "", "another source than the one trained on, e.g. folder:PATH", flag_values=FLAGS)
flags.DEFINE_string("label", "", "another field to predict than the config's", flag_values=FLAGS)
flags.DEFINE_integer("step", 0, "step to restore; 0: the newest", flag_values=FLAGS)
flags.DEFINE_bool("baselines", True, "judge raw pixels and the same encoder at random as well", flag_values=FLAGS)
flags.DEFINE_enum("dtype", "", ["", "float32", "bfloat16"], "compute dtype of the encoders; empty: the config's", flag_values=FLAGS)
flags.DEFINE_bool(
    "cache", True, "keep features in WORKDIR/features, programs in the first WORKDIR/compiled, and take them from there", flag_values=FLAGS
)
flags.DEFINE_string("report", "", "write a report to this .html file", flag_values=FLAGS)
flags.DEFINE_string("results", "", "write the numbers to this .json file", flag_values=FLAGS)
flags.DEFINE_bool("distributed", False, "join the other processes of a TPU pod or a SLURM job", flag_values=FLAGS)


def restore(directory, *, step=None, data="", label="", dtype=""):
    """Read a run of train.py back, from what the checkpoint itself says.

    -> dict: "workdir", "config", "built", "program", "state" (params and extra; no optimizer), "train" and "test" sources, "tokenizer",
    "step", "fingerprint", "raw" (a raw training batch, for pictures).
    Raises UserError for a directory without a checkpoint, a data set that is not there.
    """
    import jax

    from ssljax import checkpoint, inputs, program, sharding
    from ssljax import config as configs
    from ssljax.data import sources
    from ssljax.method import State

    workdir, folder = checkpoint.locate(directory)
    checkpoints = checkpoint.Checkpoints(folder, read_only=True)
    step = step or checkpoints.latest()
    config = configs.from_dict(checkpoints.config(step))
    config.data.source = data or config.data.source
    config.data.label = label or config.data.label
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.batch = -(-config.batch // jax.device_count()) * jax.device_count()
    for tower in ("encoder", "text"):
        if dtype and tower in config.method and "dtype" in config.method[tower]:
            config.method[tower].dtype = dtype
    built = configs.build(config)
    sources.check(config.data.source, built.data.train)
    sources.check(config.data.source, built.data.test)
    tokenizer = inputs.make_tokenizer(built)
    train, test = (
        sources.subset(sources.open(config.data.source, getattr(built.data, split)), getattr(built.evals, f"{split}_examples"))
        for split in ("train", "test")
    )
    mesh = sharding.make_mesh({"data": -1}, batch=config.batch)
    raw = next(inputs.train_batches(config, built, train, tokenizer, 0))
    run = program.make(config, built, mesh, raw, len(train))
    parts = checkpoints.restore_parts({"params": run.shapes.params, "extra": run.shapes.extra}, step)
    state = State(parts["params"], parts["extra"], None, None, None)
    return dict(
        workdir=workdir, config=config, built=built, program=run, state=state, train=train, test=test, tokenizer=tokenizer, step=step,
        raw=raw, fingerprint=checkpoints.fingerprint(step),
    )  # fmt: skip


def say(text):
    """A line on stderr, from one process: what is being waited for."""
    import jax

    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def kept(folder, restored, split, make):
    """`make()`, the features of a split, or what WORKDIR/features has of it: under a name that says checkpoint, data, what was done to the
    pictures, and code. A workdir that cannot be written to keeps none."""
    import ssljax

    if not folder or not restored["fingerprint"]:
        return make()
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(pathlib.Path(ssljax.__file__).parent.rglob("*.py"))))
    config, data = restored["config"].to_dict(), restored["built"].data
    parts = [restored["fingerprint"], restored[split].fingerprint, code.hexdigest(), config["method"], data, PICTURES]
    path = epath.Path(folder) / "features" / f"{split}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.npz"
    if path.exists():
        with path.open("rb") as file:
            return dict(np.load(io.BytesIO(file.read())))
    found = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, **found)
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        say(f"features are not kept: {error}")
    return found


def rows_of(restored, evaluators, *, baselines=True, cache=None):
    """cache: a workdir, where features are kept. -> table rows (list of dicts), notes (list of str), features of the trained encoder:
    {"train", "test"} dicts."""
    from ssljax import inputs
    from ssljax.evals import features

    built, run, source, tokenizer = (restored[k] for k in ("built", "program", "test", "tokenizer"))
    rows, notes = [], []

    def judge(title, names, state, train, test, tokenizer):
        numbers, reasons = inputs.judge(names, built, run, state, source, train, test, tokenizer)
        for key in ("linear_regulariser", "knn_best_k", "knn_best_temperature", "sgd_linear_rate"):
            numbers.pop(key, None)  # how a probe was fitted, not what the features are worth
        rows.append({"features": title, **numbers})
        if title == "pretrained":
            notes.extend(f"{name}: {reason}" for name, reason in reasons.items())

    def extract(state, split):
        return inputs.features(built, run, state, restored[split], tokenizer, images=PICTURES, pairs=split == "test")

    say(f"{restored['config'].method.name}: features of the checkpoint at step {restored['step']}")
    trained = {k: kept(cache, restored, k, lambda k=k: extract(restored["state"], k)) for k in ("train", "test")}
    if baselines:
        say("judging raw pixels")
        frozen = [name for name in evaluators if name in ("knn", "linear", "corruptions")]
        pixels = {k: {key: v[:PICTURES] for key, v in split.items()} for k, split in trained.items()}
        pixels = {k: {**split, "features": features.raw_pixels(split["image"])} for k, split in pixels.items()}
        judge("raw pixels", frozen, None, pixels["train"], pixels["test"], None)
        say("the same encoder at random")
        state = run.init()
        judge("random encoder", evaluators, state, extract(state, "train"), extract(state, "test"), tokenizer)
    say("judging the checkpoint")
    judge("pretrained", evaluators, restored["state"], trained["train"], trained["test"], tokenizer)
    return rows, notes, trained


def print_table(title, rows):
    """The rows on the terminal: one line a metric, one column each of raw pixels, random encoder, pretrained."""
    metrics = list(dict.fromkeys(k for row in rows for k in row if k != "features" and not k.endswith("_ci95")))
    wide = max(32, *map(len, metrics))
    print(f"\n{title}\n{'':{wide}}" + "".join(row["features"].rjust(18) for row in rows))
    for metric in metrics:
        print(f"{metric:{wide}}" + "".join(cell(row, metric).rjust(18) for row in rows))
    if any(key.endswith("_ci95") for row in rows for key in row):
        print("±: half of the 95 % interval, by bootstrap over the test examples")


def cell(row, metric):
    """ "0.583 ±0.021" of a row of numbers."""
    if metric not in row:
        return "-"
    return f"{row[metric]:.3f}" + (f" ±{row[metric + '_ci95']:.3f}" if f"{metric}_ci95" in row else "")


def provenance(runs):
    """What the numbers of --results come from: versions, the commit of this code, and of each run its step, the SHA-256 of what was
    restored and its config."""
    import subprocess

    import flax
    import jax

    import ssljax

    folder = pathlib.Path(ssljax.__file__).parent
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    versions = {"ssljax": ssljax.__version__, "jax": jax.__version__, "flax": flax.__version__, "numpy": np.__version__}
    return {"versions": versions, "commit": found.stdout.strip() or None, "device": jax.devices()[0].device_kind, "runs": runs}


def print_likeness(features):
    """Linear CKA of the test features of several checkpoints judged on the same pictures. features: {name: (N, D) or None}."""
    from ssljax.evals.cka import linear_cka

    names = [name for name, value in features.items() if value is not None]
    names = [name for name in names if len(features[name]) == len(features[names[0]])]
    if len(names) < 2:
        return
    print(f"\nlinear CKA of the test features\n{'':32}" + "".join(name[:16].rjust(18) for name in names))
    for name in names:
        print(f"{name[:31]:32}" + "".join(f"{linear_cka(features[name], features[other]):.3f}".rjust(18) for other in names))


def add_robustness(table):
    """To the rows of checkpoints, "effective_robustness": what corruptions leave of their accuracy beyond what they leave of others of the
    same accuracy (`corruptions.effective_robustness`), the others being all rows but this one: raw pixels, random encoders, other runs."""
    from ssljax.evals.corruptions import effective_robustness

    known = [row for row in table if "corrupted_top1" in row]
    for row in known:
        others = [other for other in known if other is not row]
        if row["features"] == "pretrained" and len({other["clean_top1"] for other in others}) > 1:
            clean, corrupted = ([other[key] for other in others] for key in ("clean_top1", "corrupted_top1"))
            row["effective_robustness"] = effective_robustness(row["clean_top1"], row["corrupted_top1"], clean, corrupted)
            print(f"\n{row['run']}: effective robustness {row['effective_robustness']:+.3f}, over the line of {len(others)} others")


def run_report(name, workdir, restored, rows, notes, trained):
    """What `report.write` shows of one checkpoint."""
    import jax

    from ssljax import config as configs
    from ssljax import inputs
    from ssljax.evals import zeroshot

    built, run, state, test = (restored[k] for k in ("built", "program", "state", "test"))
    with jax.set_mesh(run.mesh):
        batch = jax.jit(run.augment)(run.put(restored["raw"]))
        pictures = built.method.pictures(state.params, state.extra, batch, jax.random.PRNGKey(0))
    show = lambda views: np.asarray(run.pixels(views))[:8]  # noqa: E731
    names = inputs.class_names(test)
    label = inputs.label_of(built, test)
    report = {
        "name": name,
        "summary": f"{restored['config'].method.name}, step {restored['step']}, {built.data.source}, label {label}",
        "views": {group: show(batch[group]) for group in built.groups},
        "diagnostics": {k: v for k, v in rows[-1].items() if k in ("rankme", "feature_std")},
        "notes": notes,
        "config": configs.to_dict(restored["config"]),
        "neighbours": _neighbours(trained, names.get(label)),
    }
    metrics = workdir / "metrics.jsonl"
    if metrics.exists():
        report["metrics"] = str(metrics)
    for section, groups in pictures.items():
        report[section] = {title: show(images) for title, images in groups.items()}
    report |= _of_patches(built, run, state, trained["test"]["image"]) | _of_classes(trained, names.get(label))
    if "image_embedding" in trained["test"]:
        embed = inputs.text_embedder(run, state, restored["tokenizer"])
        kind = label if label in names else next(iter(names))
        classifier = zeroshot.zero_shot_classifier(zeroshot.embed_prompts(embed, names[kind], inputs.prompts(test)[kind]))
        scale = float(np.exp(state.params["logit_scale"])) if "logit_scale" in state.params else 100.0
        report["zero_shot"] = _zero_shot(trained["test"], classifier, names[kind], trained["test"][f"label:{kind}"], scale)
    return report


def _of_patches(built, run, state, images):
    """Arguments of `report.patch_features` where the encoder gives a map of at least 4 x 4, of `report.attention_maps` where it has a class
    token, and of `report.codebook` of a tokenizer.
    images: uint8 (N, H, W, 3), test pictures."""
    import jax

    from ssljax import inputs, method

    params, extra = method.averaged(state.params, state.extra)
    images = images[np.linspace(0, len(images) - 1, min(len(images), 256)).astype(int)]
    out, look = {}, inputs.looker(built, run, state)
    if look is not None:
        shown = images[:: max(len(images) // 8, 1)][:8]
        seen = look(shown)
        if "patches" in seen and seen["patches"].shape[1] >= 4:
            out["patch_features"] = dict(images=shown, features=seen["patches"].reshape(len(shown), -1, seen["patches"].shape[-1]))
        if "attention" in seen:
            out["attention"] = dict(images=shown, maps=seen["attention"])
    if hasattr(built.method, "tokens"):
        words = np.asarray(jax.jit(built.method.tokens)(params, extra, run.normalised(images)))
        out["codebook"] = dict(counts=np.bincount(words.reshape(-1), minlength=built.method.codes))
    return out


def _of_classes(trained, names, most=1000):
    """Arguments of `report.confusion` and `report.feature_map`, where the pictures have labels of at most forty classes."""
    from sklearn.manifold import TSNE
    from sklearn.metrics import confusion_matrix

    from ssljax.evals import knn

    train, test = trained["train"], trained["test"]
    if not names or len(names) > 40 or "label" not in train or len(test["label"]) < 50:
        return {}
    predicted = knn.knn_predict(train["features"], train["label"], test["features"], classes=len(names)).argmax(1)
    pick = np.linspace(0, len(test["label"]) - 1, min(most, len(test["label"]))).astype(int)
    places = TSNE(random_state=0, init="pca", perplexity=min(30, len(pick) // 4)).fit_transform(test["features"][pick])
    return {
        "confusion": dict(table=confusion_matrix(test["label"], predicted, labels=np.arange(len(names))), names=names),
        "map": dict(places=places, labels=test["label"][pick], names=names),
    }


def _neighbours(trained, names, queries=8, k=6):
    """Arguments of `report.nearest_neighbours`: test pictures and the training pictures nearest to them by cosine."""
    from ssljax.evals import knn

    train, test = trained["train"], trained["test"]
    count = len(train["image"])
    pick = np.linspace(0, len(test["image"]) - 1, queries).astype(int)
    similarity, nearest = knn.neighbours(train["features"][:count], test["features"][pick], k=k)
    distances = np.maximum(1.0 - similarity, 0.0)
    out = dict(query=test["image"][pick], neighbours=train["image"][nearest], distances=distances)
    if "label" in test and names:
        spell = np.asarray(names)
        out |= dict(query_labels=spell[test["label"][pick]], labels=spell[train["label"][nearest]])
    return out


def _zero_shot(test, classifier, names, labels, scale, examples=8, k=4):
    """Arguments of `report.zero_shot_examples`: test pictures, their most probable classes and the probabilities."""
    pick = np.linspace(0, len(test["image"]) - 1, examples).astype(int)
    from ssljax.evals import zeroshot

    logits = scale * np.asarray(zeroshot.logits(test["image_embedding"][pick], classifier))
    scores = np.exp(logits - logits.max(1, keepdims=True))
    scores /= scores.sum(1, keepdims=True)
    order = np.argsort(-scores, axis=1)[:, :k]
    spell = np.asarray(names)
    return dict(
        images=test["image"][pick], captions=spell[order].tolist(), scores=np.take_along_axis(scores, order, 1),
        truth=spell[labels[pick]].tolist(),
    )  # fmt: skip


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    if not FLAGS.checkpoint:
        raise UserError("--checkpoint is missing: the --workdir of a run of train.py, or several with commas")
    cli.start_distributed(FLAGS.distributed)
    from ssljax import checkpoint, evals, inputs, report
    from ssljax import config as configs

    if FLAGS.cache:
        cli.keep_programs(checkpoint.locate(FLAGS.checkpoint[0])[0] / "compiled")
    import jax

    evaluators = evals.available() if FLAGS.evals == ["all"] else FLAGS.evals
    for name in evaluators:
        evals.load(name)
    table, runs, about, features = [], [], {}, {}
    for directory in FLAGS.checkpoint:
        restored = restore(directory, step=FLAGS.step, data=FLAGS.data, label=FLAGS.label, dtype=FLAGS.dtype)
        workdir = restored["workdir"]
        name = workdir.name or "run"
        rows, notes, trained = rows_of(restored, evaluators, baselines=FLAGS.baselines, cache=workdir if FLAGS.cache else None)
        if jax.process_index() == 0:
            print_table(f"{name}: {restored['config'].method.name} on {restored['config'].data.source}, step {restored['step']}, "
                        f"label {inputs.label_of(restored['built'], restored['test'])}", rows)  # fmt: skip
            for note in notes:
                print(f"  {note}")
        table += [{"run": name, **row} for row in rows]
        about[name] = {"step": restored["step"], "fingerprint": restored["fingerprint"], "config": configs.to_dict(restored["config"])}
        features[name] = trained["test"]["features"] if "features" in trained["test"] else None
        if FLAGS.report:
            runs.append(run_report(name, workdir, restored, rows, notes, trained))
    if jax.process_index() == 0:
        print_likeness(features)
        add_robustness(table)
        if FLAGS.report:
            report.write(FLAGS.report, runs, table)
            print(f"\nwrote {FLAGS.report}")
        if FLAGS.results:
            pathlib.Path(FLAGS.results).write_text(json.dumps({**provenance(about), "rows": table}, indent=1, default=str))


if __name__ == "__main__":
    cli.command(main)
