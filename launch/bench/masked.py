"""What it saves that MAE's encoder sees the visible patches only: FLOPs and time of a train step against mask tokens in the encoder.

    python launch/bench/masked.py            # ten to twenty minutes and up to 24 GB on two CPU cores
    python launch/bench/masked.py --model small --json

The alternative is the same method whose encoder is given every patch, the masked as well. FLOPs of a step are counted in its jaxpr. Steps
of both are timed one after the other, alternating, and the ratio is the median over rounds. large: ViT-L/16 with the paper's decoder;
small: a ViT of 384, 8 blocks deep, whose decoder is narrower than the paper's would be.
"""

import dataclasses
import json
import pathlib
import statistics
import sys
import time

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launch.bench import rows  # noqa: E402
from ssljax import cli  # noqa: E402
from ssljax import config as configs  # noqa: E402

SIZES = {
    "large": (dict(width=1024, depth=24, heads=16, mlp_dim=4096), dict(width=512, depth=8, heads=16, mlp_dim=2048), 8, 224),
    "small": (dict(width=384, depth=8, heads=6, mlp_dim=1536), dict(width=128, depth=2, heads=4, mlp_dim=512), 16, 224),
}

FLAGS = flags.FlagValues()
flags.DEFINE_enum("model", "both", ["both", *SIZES], "which", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 7, "rounds; each runs one step of both", flag_values=FLAGS)
flags.DEFINE_string("out", str(ROOT / "launch/bench/results/masked.jsonl"), "rows are appended here", flag_values=FLAGS)
flags.DEFINE_bool("json", False, "end with one JSON line of the whole table", flag_values=FLAGS)


def steps(encoder, decoder, batch, side):
    """-> {"visible": Program, "mask tokens": Program}, a raw batch."""
    import jax
    import numpy as np

    from ssljax import program, sharding
    from ssljax.methods.mae import MAE

    class EveryPatch(MAE):
        """The encoder is given all patches, in the order of the shuffle; the loss is still of the masked."""

        def _masking(self, rng, images):
            _, mask, restore = super()._masking(rng, images)
            return jax.numpy.argsort(restore, axis=1), mask, restore

    config = configs.make(
        steps=10, batch=batch, optim=dict(name="adamw", lr=1e-4), augment={"views": dict(count=1, size=side)},
        method=dict(
            name="mae", encoder=dict(encoder, name="vit", position="sincos_mae", image_size=side), decoder=dict(decoder, name="mae_decoder")
        ),
        data=dict(source="scenes/photo", image_size=side),
    )  # fmt: skip
    built = configs.build(config)
    rows = np.arange(batch, dtype=np.int32)
    image = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3)).astype(np.uint8)
    raw = {"views": image[:, None], "image": image, "id": rows, "epoch": 0 * rows, "label": 0 * rows, "valid": rows >= 0}
    mesh = sharding.make_mesh({"data": 1}, batch=batch, devices=jax.devices()[:1])
    methods = {
        "visible": built.method,
        "mask tokens": EveryPatch(**{f.name: getattr(built.method, f.name) for f in dataclasses.fields(MAE)}),
    }
    made = {name: program.make(config, dataclasses.replace(built, method=m), mesh, raw, examples=1000) for name, m in methods.items()}
    return made, raw


def flops_ratio(made, raw):
    import jax

    from ssljax import metrics

    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in raw.items()}
    counts = {name: metrics.count_flops(p.train_step, p.shapes, shapes) for name, p in made.items()}
    return counts["visible"] / counts["mask tokens"]


def time_ratio(made, raw, rounds):
    import jax

    states = {name: p.init() for name, p in made.items()}
    seconds = {name: [] for name in made}
    for _ in range(rounds + 1):  # the first compiles
        for name, p in made.items():
            batch = p.put(raw)
            started = time.perf_counter()
            states[name], _ = p.step(states[name], batch)
            jax.block_until_ready(states[name].params)
            seconds[name].append(time.perf_counter() - started)
    return statistics.median(a / b for a, b in list(zip(seconds["visible"], seconds["mask tokens"], strict=True))[1:])


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    table = []
    for name in SIZES if FLAGS.model == "both" else [FLAGS.model]:
        made, raw = steps(*SIZES[name])
        flops, seconds = flops_ratio(made, raw), time_ratio(made, raw, FLAGS.rounds)
        table.append({"model": name, "flops": round(flops, 3), "time": round(seconds, 3)} | rows.origin())
        rows.keep(table[-1:], FLAGS.out)
    print("| model | FLOPs, visible / mask tokens; bar 0.45 | time | time over FLOPs; bar 15 % |\n| --- | --- | --- | --- |")
    for row in table:
        print(f"| {row['model']} | {row['flops']} | {row['time']} | {row['time'] / row['flops'] - 1:+.0%} |")
    if FLAGS.json:
        print(json.dumps(table))


if __name__ == "__main__":
    cli.command(main)
