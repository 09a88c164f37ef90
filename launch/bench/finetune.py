"""What pretraining is worth when all weights may move: fine-tuning against the linear probe, and with one label in a hundred.

    python launch/bench/finetune.py                          # SimCLR and MAE on scenes/photo, two seeds; minutes each
    python launch/bench/finetune.py --pretraining simclr --seeds 1 --json

Pretrained at the same seed (kept in .cache/learning), then trained with labels by the `supervised` method from its weights, by the same
loop and optimizer as from scratch. Accuracy is of the test split, whose digits and parts of photographs nobody was trained on.
"""

import json
import pathlib
import sys

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launch.bench import learning, rows  # noqa: E402
from ssljax import cli  # noqa: E402
from ssljax import config as configs  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_list("pretraining", ["simclr", "mae"], "of what", flag_values=FLAGS)
flags.DEFINE_list("seeds", ["1", "2"], "seeds to run", flag_values=FLAGS)
flags.DEFINE_string("out", str(ROOT / "launch/bench/results/finetune.jsonl"), "rows are appended here", flag_values=FLAGS)
flags.DEFINE_bool("json", False, "end with one JSON line of the whole table", flag_values=FLAGS)

FIRST = {"simclr": "simclr_resnet_scenes.py:data=photo,steps=1800", "mae": "mae_vit_scenes.py:data=photo"}
STEPS, CLASSES = 300, 14
DRAWS = {1.0: 1, 0.01: 3}  # by the share of labels: subsets of which the accuracy is the mean
# SimCLR's were chosen with a seed that is in no row: the head starts from nothing and learns ten times faster than what was pretrained.
PEAK = {"simclr": {1.0: 1e-2, 0.01: 3e-2}, "mae": {1.0: 1e-3, 0.01: 1e-3}}
SLOWER = {"simclr": (("^encoder/(?!out)", dict(lr=0.1)),), "mae": ()}
DECAY = {"simclr": {}, "mae": dict(layer_decay=0.75)}


def config(pretraining, share, checkpoint, seed):
    """The ConfigDict of training with labels, the encoder that of the pretraining."""
    from ssljax import embedded

    file, _, argument = FIRST[pretraining].partition(":")
    encoder = configs.load(ROOT / "configs" / file, argument).method.encoder.to_dict() | dict(out=CLASSES, out_bias=True)
    a = embedded.parse("", steps=STEPS, batch=128 if share == 1 else 64)
    lr = dict(kind="cosine", peak=PEAK[pretraining][share], warmup_steps=20)
    weak = dict(count=1, scale=(0.4, 1.0), brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, grey=0.0)
    made = embedded.make(a, method=dict(name="supervised", encoder=encoder), views=weak, optim=dict(lr=lr) | DECAY[pretraining])
    made.groups = SLOWER[pretraining]
    made.seed, made.init.checkpoint = seed, checkpoint
    return made


def subset(share, seed):
    """Rows of the training split, as many of each class, drawn by this seed."""
    import numpy as np

    from ssljax.data import scenes_recipe

    train, rng = scenes_recipe.make("photo", "train"), np.random.default_rng(seed)
    each = int(share * len(train["image"]) / CLASSES)
    pick = np.concatenate([rng.permutation(np.flatnonzero(train["photograph"] == c))[:each] for c in range(CLASSES)])
    return {k: [v[i] for i in pick] if isinstance(v, list) else v[pick] for k, v in train.items()}


def accuracy(pretraining, share, checkpoint, seed):
    """Test top-1 of training with a share of the labels, the mean over draws of them; checkpoint "": from scratch."""
    import numpy as np

    return float(np.mean([once(pretraining, share, checkpoint, seed, draw) for draw in range(DRAWS[share])]))


def once(pretraining, share, checkpoint, seed, draw):
    import numpy as np

    from ssljax.data import pipeline
    from ssljax.evals import features

    made = config(pretraining, share, checkpoint, seed)
    _, p, state, _, _, splits, _ = learning.fit(made, train=subset(share, [seed, draw]))
    batches = pipeline.array_eval_batches({"image": splits["test"]["image"], "label": splits["test"]["photograph"]}, batch=256)
    out = features.extract(lambda b: p.embed(state.params, state.extra, b), batches, p.put)
    return float(np.mean(out["logits"].argmax(1) == out["label"]))


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    import jax

    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
    table = []
    for name in FLAGS.pretraining:
        for seed in map(int, FLAGS.seeds):
            checkpoint = learning.first_stage(FIRST[name], seed)
            row = {"pretraining": name, "seed": seed, "linear": learning.linear_probe(checkpoint)}
            row |= {"tuned": accuracy(name, 1.0, checkpoint, seed), "scratch": accuracy(name, 1.0, "", seed)}
            row |= {"tuned_1%": accuracy(name, 0.01, checkpoint, seed), "scratch_1%": accuracy(name, 0.01, "", seed)}
            table.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} | rows.origin())
            rows.keep(table[-1:], FLAGS.out)
            print(json.dumps(table[-1]), file=sys.stderr, flush=True)
    print("| pretraining | seed | linear probe | fine-tuned | from scratch | 1 % tuned | 1 % from scratch |\n|" + " --- |" * 7)
    for row in table:
        print(
            "| " + " | ".join(str(row[k]) for k in ("pretraining", "seed", "linear", "tuned", "scratch", "tuned_1%", "scratch_1%")) + " |"
        )
    if FLAGS.json:
        print(json.dumps(table))


if __name__ == "__main__":
    cli.command(main)
