"""Does a method learn? Every small config on the embedded scenes, against raw pixels and the same encoder at random.

    python launch/bench/learning.py                                  # all, two seeds; a row as each run ends, resumes where it stopped
    python launch/bench/learning.py --methods simclr,mae --seeds 1
    python launch/bench/learning.py --family invariance --json

A config takes part by stating `LEARNING`, a tuple of arguments to run it with, and `FAMILY`; where its method needs another run's
checkpoint, `FIRST` names the config of that run, which is trained ahead at the same seed. test_*: the method's own numbers on pictures
that it was not trained on; copy_ratio: masked pixels' error over that of copying the nearest visible patch. Runs from ready arrays,
without TensorFlow.
The seeds (1, 2, ...) chose no setting. Scores are of the test split, whose digits and parts of photographs are not trained on.
"""

import functools
import hashlib
import importlib.util
import json
import pathlib
import sys
import time

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launch.bench.rows import commit, keep, markdown, stored  # noqa: E402
from ssljax import cli  # noqa: E402
from ssljax import config as configs  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_list("methods", [], "names of methods; default: all", flag_values=FLAGS)
flags.DEFINE_string("family", "", "only configs of this FAMILY", flag_values=FLAGS)
flags.DEFINE_list("seeds", ["1", "2"], "seeds to run", flag_values=FLAGS)
flags.DEFINE_list("data", [], "plain, photo; default: all that a config names", flag_values=FLAGS)
flags.DEFINE_string("out", str(ROOT / "launch/bench/results/learning.jsonl"), "rows are appended here", flag_values=FLAGS)
flags.DEFINE_bool("json", False, "end with one JSON line of the whole table", flag_values=FLAGS)
flags.DEFINE_integer("steps", 0, "other than the config's number of steps; for a quick look", flag_values=FLAGS)


def module_of(path):
    """A config file as a module: its LEARNING, FAMILY and FIRST."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tasks():
    """(config file, argument, family) of every run."""
    for path in sorted((ROOT / "configs").glob("*.py")):
        module = module_of(path)
        for argument in getattr(module, "LEARNING", ()):
            yield path, argument, getattr(module, "FAMILY", "")


MOST = {"train": 4096, "test": 2048}  # pictures that judge


@functools.cache
def raw_pixels(scenes, label):
    """What a probe of the pixels themselves reaches."""
    from ssljax import evals
    from ssljax.data import scenes_recipe
    from ssljax.evals import features

    splits = {split: scenes_recipe.make(scenes, split) for split in MOST}
    pixels = {k: {"features": features.raw_pixels(rows["image"][: MOST[k]]), "label": rows[label][: MOST[k]]} for k, rows in splits.items()}
    scores = evals.judge(["knn", "linear"], evals.Context(**pixels, classes=len(scenes_recipe.CLASSES[scenes][label])))[0]
    return {f"raw_{k}": scores[k] for k in ("knn_top1", "linear_top1")}


def first_stage(spec, seed, steps=0):
    """Workdir of a run of "CONFIG.py:ARGUMENT" at this seed, trained here unless it was before."""
    from ssljax import checkpoint

    name, _, argument = spec.partition(":")
    config = prepared(ROOT / "configs" / name, argument, seed, steps)
    digest = hashlib.sha256(json.dumps(configs.to_dict(config), sort_keys=True, default=str).encode()).hexdigest()[:12]
    workdir = ROOT / ".cache" / "learning" / f"{name.removesuffix('.py')}-{digest}"
    if not (workdir / "done").exists():
        state = fit(config)[2]
        saver = checkpoint.Checkpoints(workdir / "checkpoints")
        saver.save(config.steps, state, configs.to_dict(config), {})
        saver.close()
        (workdir / "done").touch()
    return str(workdir)


def prepared(path, argument, seed, steps=0):
    """The ConfigDict of a run, its first stages (FIRST = {field of the method: "CONFIG.py:ARGUMENT"}) trained and named in it."""
    config = configs.load(path, argument)
    config.seed = seed
    for field, spec in getattr(module_of(path), "FIRST", {}).items():
        config.method[field] = first_stage(spec, seed, steps)
    return configs.with_steps(config, steps) if steps else config


def linear_probe(workdir, label="photograph"):
    """Test accuracy of a linear probe on what `first_stage` trained."""
    from ssljax import encoder
    from ssljax.data import scenes_recipe
    from ssljax.evals import linear

    encode, parts = encoder.restore(workdir), {}
    for split, most in MOST.items():
        arrays = scenes_recipe.make("photo", split)
        parts[split] = {"features": encode(arrays["image"][:most]), "label": arrays[label][:most]}
    return linear.evaluate(parts["train"], parts["test"], classes=len(scenes_recipe.CLASSES["photo"][label]))["linear_top1"]


def feed_of(config, rows, tokenizer):
    """The batches of a split's arrays."""
    from ssljax.data import pipeline

    options = dict(tokenizer=tokenizer, text_key=config.data.caption, label=config.data.label)
    return pipeline.array_batches(rows, batch=config.batch, seed=config.seed, **options)


def fit(config, watch=lambda *_: None, train=None):
    """Train a config from arrays, from config.init.checkpoint where it is given. train: other rows than the training split's. watch: called
    with (program, state, embedded split) before the first step. -> built, program, state, metrics of every step, tokenizer, splits,
    seconds and CPU minutes."""
    import jax

    from ssljax import encoder, initialise, inputs, program, sharding
    from ssljax.data import pipeline, scenes_recipe
    from ssljax.evals import features

    built = configs.build(config)
    tokenizer = inputs.make_tokenizer(built)
    splits = {split: scenes_recipe.make(config.data.source.removeprefix("scenes/"), split) for split in MOST}
    splits["train"] = train or splits["train"]
    feed = feed_of(config, splits["train"], tokenizer)
    batch, examples = next(feed), len(splits["train"]["image"])
    mesh = sharding.make_mesh(config.mesh.to_dict(), batch=config.batch)
    p = program.make(config, built, mesh, batch, examples)
    state, rows = p.init(), []
    if config.init.checkpoint:
        state, _ = initialise.warm_start(state, encoder.restore(config.init.checkpoint), config.init.drop)
    watch(built, p, state, tokenizer, splits)
    started, cpu = time.monotonic(), time.process_time()
    for step in range(config.steps):
        if built.method.refresh and step * config.batch // examples != (step - 1) * config.batch // examples:
            batches = pipeline.array_eval_batches({"image": splits["train"]["image"]}, batch=256)
            state = built.method.refresh(state, features.extract(lambda b: p.embed(state.params, state.extra, b), batches, p.put))  # noqa: B023
        state, metrics = p.step(state, p.put(batch))
        rows.append(metrics)
        if step % 20 == 0:
            jax.block_until_ready(metrics["loss"])
            if sys.stderr.isatty():
                print(f"\r{config.method.name}: step {step}/{config.steps} loss {float(metrics['loss']):.4f} ", end="", file=sys.stderr)
        batch = next(feed)
    jax.block_until_ready(state)
    spent = {"train_seconds": round(time.monotonic() - started, 1), "cpu_minutes": round((time.process_time() - cpu) / 60, 2)}
    return built, p, state, rows, tokenizer, splits, spent


def held_out(config, p, state, tokenizer, splits, batches=8):
    """The method's own numbers on pictures of the test split, means over batches: of steps whose outcome is thrown away. Of a tokenizer,
    "codes_used": the share of its codes that the whole split uses."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    feed = feed_of(config, splits["test"], tokenizer)
    rows = [p.step(jax.tree.map(jnp.copy, state), p.put(next(feed)))[1] for _ in range(batches)]
    own = [name for name in rows[0] if name not in {"nonfinite", "gradient_norm", *p.schedules}]
    out = {f"test_{name}": float(np.mean([float(row[name]) for row in rows])) for name in own if np.ndim(rows[0][name]) == 0}
    if hasattr(p.method, "tokens"):
        words = jax.jit(p.method.tokens)(state.params, state.extra, p.normalised(splits["test"]["image"]))
        out["codes_used"] = len(np.unique(words)) / p.method.codes
    return out


def against_copying(built, p, state, splits):
    """{"copy_ratio"}: error of the masked pixels over that of copying the nearest visible patch, where a method fills pixels in."""
    import jax
    import numpy as np

    from ssljax import losses

    raw = {k: v[:256] for k, v in splits["test"].items() if k in ("image",)}
    rows = np.arange(len(raw["image"]), dtype=np.int32)
    batch = p.augment(p.put(raw | {"id": rows, "epoch": 0 * rows, "label": 0 * rows, "valid": rows >= 0}))
    try:
        pictures = built.method.pictures(state.params, state.extra, batch, jax.random.PRNGKey(0)).get("reconstructions", {})
    except KeyError:
        return {}
    if "masked" not in pictures or not hasattr(built.method.encoder, "patch_size"):
        return {}
    size = built.method.encoder.patch_size
    original, masked, rebuilt = (np.asarray(losses.patchify(pictures[k], size)) for k in ("original", "masked", "reconstruction"))
    mask = (masked == 0).all(-1) & (original != 0).any(-1)  # (B, N)
    side = round(original.shape[1] ** 0.5)
    place = np.stack(np.divmod(np.arange(side**2), side), -1)
    distance = np.square(place[:, None] - place[None]).sum(-1) + 1e9 * mask[:, None, :]  # (B, N, N), to what is visible
    copied = np.take_along_axis(original, distance.argmin(-1)[..., None], axis=1)
    error = lambda x: np.square(x - original)[mask].mean()  # noqa: E731
    return {"copy_ratio": float(error(rebuilt) / error(copied))}


def curve(rows, points=20):
    """[[step, mean loss of the steps since the point before], ...]: what `bands` makes the reference of a config from."""
    import numpy as np

    losses = [float(row["loss"]) for row in rows]
    ends = np.unique(np.linspace(0, len(losses), points + 1).astype(int)[1:])
    return [[int(end), float(np.mean(losses[start:end]))] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def bands(rows):
    """{config file's name: {"loss": [[step, least, most], ...]}} of rows with curves: the seeds' mean, give or take four times their
    deviation, at least 5 %."""
    import numpy as np

    out = {}
    for config in sorted({row["config"] for row in rows if row.get("curve")}):
        steps, values = np.moveaxis(np.array([row["curve"] for row in rows if row["config"] == config and row.get("curve")]), -1, 0)
        mean = values.mean(0)
        slack = np.maximum(4 * values.std(0), 0.05 * np.abs(mean))
        out[config] = {"loss": np.stack([steps[0], mean - slack, mean + slack], 1).round(5).tolist()}
    return out


def run(path, argument, seed, steps=0):
    """Train one config from arrays and judge it. -> row (dict)."""
    import numpy as np

    from ssljax import evals, inputs, trees
    from ssljax.data import pipeline, scenes_recipe
    from ssljax.evals import features

    config = prepared(path, argument, seed, steps)
    scenes, label = config.data.source.removeprefix("scenes/"), config.data.label
    kinds = scenes_recipe.CLASSES[scenes]
    row = {"config": f"{path.name}:{argument}", "method": config.method.name, "data": config.data.source, "label": config.data.label}
    row |= {"seed": seed, "steps": config.steps, "batch": config.batch}

    def judge(evaluators, built, p, state, tokenizer, splits):
        parts = {}
        for split, rows in splits.items():
            values = {"image": rows["image"], "label": rows[label], **{k: rows[k] for k in kinds if k != label}}
            values = {k: v[: MOST[split]] for k, v in values.items()}
            if tokenizer is not None:
                values["text"] = tokenizer(list(rows[config.data.caption][: MOST[split]]))
            batches = pipeline.array_eval_batches(values, batch=256)
            out = features.extract(inputs.embedder(p, state, pairs=split == "test"), batches, p.put)
            parts[split] = inputs.label_columns(out, kinds, label) | {"image": values["image"]}
        return evals.judge(evaluators, evals.Context(
            **parts, classes=len(kinds[label]), text_embed=inputs.text_embedder(p, state, tokenizer),
            write=inputs.caption_writer(built, p, state, tokenizer, lambda: list(splits["train"][config.data.caption])),
            class_names=kinds, prompts=scenes_recipe.PROMPTS.get(scenes, {}),
        ))[0]  # fmt: skip

    def before(built, p, state, tokenizer, splits):
        random = judge(["knn", "linear"], built, p, state, tokenizer, splits)
        row.update(raw_pixels(scenes, label), parameters=trees.size(state.params))
        row.update({f"random_{k}": random[k] for k in ("knn_top1", "linear_top1")})

    built, p, state, rows, tokenizer, splits, spent = fit(config, before)
    row |= spent | {"loss": float(np.mean([float(x["loss"]) for x in rows[-20:]]))}
    row["curve"] = curve(rows)
    row |= {k: float(v) for k, v in rows[-1].items() if k in ("teacher_entropy", "prototype_entropy", "mean_fill_ratio")}
    two = tokenizer is not None and hasattr(built.method, "text") and built.method.encoder is not built.method.text
    more = ["zeroshot", "retrieval"] if two else []
    more += ["captions"] if hasattr(built.method, "writer") else []
    scores = judge(["knn", "linear", "rankme", *more], built, p, state, tokenizer, splits)
    row |= {k: v for k, v in scores.items() if not k.endswith("_ci95")}
    row |= held_out(config, p, state, tokenizer, splits) | against_copying(built, p, state, splits)
    row["commit"] = commit()
    return row


COLUMNS = ("config", "seed", "raw_knn_top1", "raw_linear_top1", "random_knn_top1", "random_linear_top1", "knn_top1", "linear_top1",
           "rankme", "feature_std", "steps", "cpu_minutes", "commit")  # fmt: skip


def table(rows):
    """Markdown of the rows; beside the fixed columns, what only some methods report."""
    lines = []
    shown = {*COLUMNS, "method", "data", "label", "batch", "parameters", "loss", "linear_regulariser", "train_seconds", "curve"}
    for row in rows:
        cells = [f"{row[c]:.3f}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in COLUMNS]
        also = ", ".join(f"{k} {v:.3f}" for k, v in row.items() if k not in shown and isinstance(v, float))
        lines.append([*cells, also])
    return markdown((*COLUMNS, "also"), lines)


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    import jax

    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
    out = pathlib.Path(FLAGS.out)
    rows = stored(out)
    done = {(row["config"], row["seed"]) for row in rows}
    wanted = []
    for path, argument, family in tasks():
        config = configs.load(path, argument)
        if FLAGS.methods and config.method.name not in FLAGS.methods or FLAGS.family not in ("", family):
            continue
        if FLAGS.data and config.data.source.removeprefix("scenes/") not in FLAGS.data:
            continue
        for seed in map(int, FLAGS.seeds):
            wanted.append((f"{path.name}:{argument}", seed))
            if wanted[-1] not in done:
                row = run(path, argument, seed, FLAGS.steps)
                jax.clear_caches()  # a process may hold so many compiled programs only
                rows.append(row)
                keep([row], out)
                print(json.dumps(row), file=sys.stderr, flush=True)
    if out == ROOT / "launch/bench/results/learning.jsonl":
        every = sorted(rows, key=lambda row: (row["config"], row["seed"]))
        for name, band in bands(every).items():
            path = ROOT / "tests" / "curves" / (name.replace(".py:", "-").replace("=", "_").rstrip("-") + ".json")
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(band) + "\n")
        out.with_suffix(".md").write_text(
            f"# Small configs on the embedded scenes\n\n`python launch/bench/learning.py`\n\n{table(every)}\n"
        )
    rows = [row for row in rows if (row["config"], row["seed"]) in wanted]
    print(table(rows))
    if FLAGS.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    cli.command(main)
