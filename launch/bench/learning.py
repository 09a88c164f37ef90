"""Does a method learn? Every small config on the embedded scenes, against raw pixels and the same encoder at random.

    python launch/bench/learning.py                                  # all, two seeds; a row as each run ends, resumes where it stopped
    python launch/bench/learning.py --methods simclr,mae --seeds 1
    python launch/bench/learning.py --family contrastive --json

A config takes part by stating `LEARNING`, a tuple of arguments to run it with, and `FAMILY`. Runs from ready arrays, without TensorFlow.
The seeds (1, 2, ...) chose no setting. Scores are of the test split, whose digits and parts of photographs are not trained on.
"""

import functools
import importlib.util
import json
import pathlib
import subprocess
import sys
import time

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

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


def tasks():
    """(config file, argument, family) of every run."""
    for path in sorted((ROOT / "configs").glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
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


def run(path, argument, seed, steps=0):
    """Train one config from arrays and judge it. -> row (dict)."""
    import jax
    import numpy as np

    from ssljax import evals, inputs, program, sharding, trees
    from ssljax.data import pipeline, scenes_recipe
    from ssljax.evals import features

    config = configs.load(path, argument)
    config.seed = seed
    config = configs.with_steps(config, steps) if steps else config
    built = configs.build(config)
    scenes, label = config.data.source.removeprefix("scenes/"), config.data.label
    tokenizer = inputs.make_tokenizer(built)
    splits = {split: scenes_recipe.make(scenes, split) for split in ("train", "test")}
    kinds = scenes_recipe.CLASSES[scenes]

    feed = pipeline.array_batches(splits["train"], batch=config.batch, seed=seed, tokenizer=tokenizer, label=label)
    first = next(feed)
    mesh = sharding.make_mesh(config.mesh.to_dict(), batch=config.batch)
    p = program.make(config, built, mesh, first, len(splits["train"]["image"]))
    state = p.init()

    def judge(state, evaluators):
        parts = {}
        for split, rows in splits.items():
            values = {"image": rows["image"], "label": rows[label], **{k: rows[k] for k in kinds if k != label}}
            values = {k: v[: MOST[split]] for k, v in values.items()}
            if tokenizer is not None:
                values["text"] = tokenizer(list(rows["caption"][: MOST[split]]))
            batches = pipeline.array_eval_batches(values, batch=256)
            out = features.extract(lambda b: p.embed(state.params, state.extra, b), batches, p.put)
            parts[split] = inputs.label_columns(out, kinds, label)
        return evals.judge(evaluators, evals.Context(
            **parts, classes=len(kinds[label]), text_embed=inputs.text_embedder(p, state, tokenizer),
            class_names=kinds, prompts=scenes_recipe.PROMPTS.get(scenes, {}),
        ))[0]  # fmt: skip

    row = {"config": f"{path.name}:{argument}", "method": config.method.name, "data": config.data.source, "label": config.data.label}
    row |= {"seed": seed, "steps": config.steps, "batch": config.batch, "parameters": trees.size(state.params)}
    row |= raw_pixels(scenes, label)
    random = judge(state, ["knn", "linear"])
    row |= {f"random_{k}": random[k] for k in ("knn_top1", "linear_top1")}

    started, cpu, losses = time.monotonic(), time.process_time(), []
    batch = first
    examples = len(splits["train"]["image"])
    for step in range(config.steps):
        if built.method.refresh and step * config.batch // examples != (step - 1) * config.batch // examples:
            batches = pipeline.array_eval_batches({"image": splits["train"]["image"]}, batch=256)
            state = built.method.refresh(state, features.extract(lambda b: p.embed(state.params, state.extra, b), batches, p.put))  # noqa: B023
        state, metrics = p.step(state, p.put(batch))
        losses.append(metrics["loss"])
        if step % 20 == 0:
            jax.block_until_ready(metrics["loss"])
            if sys.stderr.isatty():
                print(f"\r{row['config']} seed {seed}: step {step}/{config.steps} loss {float(losses[-1]):.4f} ", end="", file=sys.stderr)
        batch = next(feed)
    jax.block_until_ready(state)
    row |= {"train_seconds": round(time.monotonic() - started, 1), "cpu_minutes": round((time.process_time() - cpu) / 60, 2)}
    row["loss"] = float(np.mean([float(x) for x in losses[-20:]]))
    row |= {k: float(v) for k, v in metrics.items() if k in ("teacher_entropy", "prototype_entropy", "mean_fill_ratio")}
    evaluators = ["knn", "linear", "rankme"] + (["zeroshot", "retrieval"] if tokenizer is not None else [])
    row |= {k: v for k, v in judge(state, evaluators).items()}
    row["commit"] = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return row


COLUMNS = ("config", "seed", "raw_knn_top1", "raw_linear_top1", "random_knn_top1", "random_linear_top1", "knn_top1", "linear_top1",
           "rankme", "feature_std", "steps", "cpu_minutes", "commit")  # fmt: skip


def table(rows):
    """Markdown of the rows; beside the fixed columns, what only some methods report."""
    lines = ["| " + " | ".join((*COLUMNS, "also")) + " |", "|" + " --- |" * (len(COLUMNS) + 1)]
    shown = {*COLUMNS, "method", "data", "label", "batch", "parameters", "loss", "linear_regulariser", "train_seconds"}
    for row in rows:
        cells = [f"{row[c]:.3f}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in COLUMNS]
        also = ", ".join(f"{k} {v:.3f}" for k, v in row.items() if k not in shown and isinstance(v, float))
        lines.append("| " + " | ".join([*cells, also]) + " |")
    return "\n".join(lines)


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    out = pathlib.Path(FLAGS.out)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
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
                rows.append(row)
                out.parent.mkdir(parents=True, exist_ok=True)
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), file=sys.stderr, flush=True)
    if out == ROOT / "launch/bench/results/learning.jsonl":
        every = sorted(rows, key=lambda row: (row["config"], row["seed"]))
        out.with_suffix(".md").write_text(
            f"# Small configs on the embedded scenes\n\n`python launch/bench/learning.py`\n\n{table(every)}\n"
        )
    rows = [row for row in rows if (row["config"], row["seed"]) in wanted]
    print(table(rows))
    if FLAGS.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    cli.command(main)
