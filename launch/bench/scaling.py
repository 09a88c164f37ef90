"""Weak scaling, by the TPU's compiler: what a chip holds, computes and sends of one step as chips are added at the same images a chip.

    bash launch/plan.sh --help                                   # once: makes .venv-plan, which has the compiler
    .venv-plan/bin/python launch/bench/scaling.py                # three methods, 8 to 8,192 chips of v5p; an hour on two CPU cores
    .venv-plan/bin/python launch/bench/scaling.py --methods siglip --chips 8,512
    .venv-plan/bin/python launch/bench/scaling.py --quick        # a quarter of an hour; no bound by HBM's traffic

The mesh is fsdp=4 within data: with 8, eight chips would have no data axis, and the compiler makes them another program, whose gathers
are rings of permutes. Memory and FLOPs a chip should stay flat within 2 % of those of 8 chips. What a chip sends is
told beside what arithmetic says: weights of two bytes gathered over fsdp for each pass of the student and the teacher, gradients scattered
over fsdp and summed over data, and, of a contrastive loss, every encoding once past every chip, forward and back: on the grid of R x C
chips that the loss takes where there are many, past R and past C of them.
"""

import json
import pathlib
import sys
import time
import types

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launch.bench.rows import commit, keep  # noqa: E402
from ssljax import cli, plan  # noqa: E402
from ssljax import config as configs  # noqa: E402
from ssljax.errors import UserError  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_list("methods", ["siglip", "dinov2", "mae"], "which", flag_values=FLAGS)
flags.DEFINE_list("chips", ["8", "64", "512", "4096", "8192"], "how many", flag_values=FLAGS)
flags.DEFINE_bool("quick", False, "as plan --quick: the same memory, FLOPs and collectives in a fifth of the time", flag_values=FLAGS)
flags.DEFINE_string("out", str(ROOT / "launch/bench/results/scaling.jsonl"), "rows are appended here", flag_values=FLAGS)
flags.DEFINE_bool("json", False, "end with one JSON line of the whole table", flag_values=FLAGS)

SHAPES = {8: "2x2x2", 64: "4x4x4", 512: "8x8x8", 4096: "16x16x16", 8192: "16x16x32"}
CASES = {  # config, images a chip, passes through the weights, how many of them come back with gradients
    "siglip": ("siglip_vitb16_webimages.py", 64, 2, 1),
    "dinov2": ("dinov2_vitl16_imagenet.py", 8, 5, 2),  # the student looks at large and small crops apart, each way; the teacher once
    "mae": ("mae_vitb16_imagenet.py:size=L/16", 32, 2, 1),
}
FSDP = 4


def arithmetic(found, passes, returns, width):
    """Bytes that a chip sends in a step: {"weights", "gradients", "encodings"}."""
    weights = found["hbm"]["parameters"] * FSDP / 2  # two bytes where parameters have four
    data = found["chips"] // FSDP
    inside, between = (FSDP - 1) / FSDP, 2 * (data - 1) / data
    encodings = 2 * 4 * width * found["batch"] / found["chips"] * hops(found["batch"], width, found["chips"])
    gradients = returns * (weights * inside + weights / FSDP * between)
    return {"weights": passes * weights * inside, "gradients": gradients, "encodings": encodings}


def hops(batch, width, chips):
    """Chips that an encoding and what is gathered for it pass, by the schedule that the loss takes."""
    from ssljax.losses import pairs, streaming

    layout = streaming.Layout(types.SimpleNamespace(shape={"data": chips // FSDP, "fsdp": FSDP}), ("data", "fsdp"))
    _, schedule = pairs.choose("auto", batch, batch, width, "float32", layout, half=False)
    return chips - 1 if schedule == "gather" else chips // schedule - 1 + schedule - 1


def measure(method, chips):
    """Row of a method on so many chips."""
    file, images, passes, returns = CASES[method]
    config = configs.load(ROOT / "configs" / file.partition(":")[0], file.partition(":")[2])
    config.batch, config.mesh = images * chips, {"data": -1, "fsdp": FSDP, "tensor": 1}
    started = time.perf_counter()
    found = plan.plan(config, f"v5p:{SHAPES[chips]}", quick=FLAGS.quick)
    width = config.method.text.out if "text" in config.method else 0
    said = arithmetic(found, passes, returns, width)
    return {
        "method": method, "chips": chips, "fsdp": FSDP, "batch": config.batch, "hbm_gib": round(found["total"] / 2**30, 3),
        "tflops": round(found["flops"] / 1e12, 4), "sent_gib": {k: round(v / 2**30, 4) for k, v in found["collectives"].items()},
        "arithmetic_gib": {k: round(v / 2**30, 4) for k, v in said.items()}, "images_per_second": round(found["images_per_second"]),
        "bound": found["bound"], "quick": FLAGS.quick, "seconds": round(time.perf_counter() - started, 1), "commit": commit(),
    }  # fmt: skip


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    if wrong := [m for m in FLAGS.methods if m not in CASES] or [n for n in FLAGS.chips if n not in map(str, SHAPES)]:
        raise UserError(f"{wrong[0]}: expected methods of {', '.join(CASES)}, chips of {', '.join(map(str, SHAPES))}")
    table = []
    for method in FLAGS.methods:
        for chips in map(int, FLAGS.chips):
            table.append(measure(method, chips))
            keep(table[-1:], FLAGS.out)
            print(json.dumps(table[-1]), file=sys.stderr, flush=True)
    print(
        "| method | chips | batch | HBM GiB, of the first's | TFLOPs, of the first's | sent GiB | arithmetic GiB | bound |\n|"
        + " --- |" * 8
    )
    first = {}
    for row in table:
        base = first.setdefault(row["method"], row)
        sent, said = (f"{sum(row[key].values()):.3f}" for key in ("sent_gib", "arithmetic_gib"))
        print(f"| {row['method']} | {row['chips']} | {row['batch']} | {row['hbm_gib']}, {row['hbm_gib'] / base['hbm_gib']:.3f} | "
              f"{row['tflops']}, {row['tflops'] / base['tflops']:.3f} | {sent} | {said} | {row['bound']} |")  # fmt: skip
    if FLAGS.json:
        print(json.dumps(table))


if __name__ == "__main__":
    plan.open_no_chip()
    cli.command(main)
