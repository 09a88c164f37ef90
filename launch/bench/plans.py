"""Every paper-scale config, compiled for a pod that fits it: HBM of a chip, ceiling on images/s, what bounds it.

    bash launch/plan.sh --help                                 # once: makes .venv-plan, which has the TPU's compiler
    .venv-plan/bin/python launch/bench/plans.py                # those without a row; one to eleven minutes each on two CPU cores
    .venv-plan/bin/python launch/bench/plans.py --quick        # a minute each, memory to a fifth or so: those without any row
    .venv-plan/bin/python launch/bench/plans.py --only dino --again
    .venv-plan/bin/python launch/bench/plans.py --write        # the rows' figures into the configs' docstrings; plans nothing

A config is planned for the first pod of its list that fits, from the first on which a chip has no more than 64 images; a plan is a
process of its own, so that one which fails ends no other.
"""

import ast
import json
import math
import pathlib
import subprocess
import sys
import time

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launch.bench.rows import commit, keep, stored  # noqa: E402
from ssljax import cli, plan  # noqa: E402
from ssljax import config as configs  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_string("only", "", "configs whose file name has this in it", flag_values=FLAGS)
flags.DEFINE_bool("again", False, "those that have a row as well", flag_values=FLAGS)
flags.DEFINE_bool("quick", False, "plan with --quick", flag_values=FLAGS)
flags.DEFINE_bool("write", False, "write the rows' figures into the configs' docstrings", flag_values=FLAGS)
flags.DEFINE_integer("limit", 1800, "seconds that one plan may take", flag_values=FLAGS)
flags.DEFINE_string("out", str(ROOT / "launch/bench/results/plans.jsonl"), "rows are appended here", flag_values=FLAGS)
flags.DEFINE_bool("json", False, "end with one JSON line of the whole table", flag_values=FLAGS)

PODS = ("v5e:4x4", "v5e:8x8", "v5e:16x16", "v5p:8x8x8")
OWN = {"emp_ssl_resnet18_imagenet": ("v5e:2x2",)}  # a batch of 100
IMAGES = 64  # of a chip, at most, but on the largest pods
MARK = "Plan: "


def paper_configs():
    return [path for path in sorted((ROOT / "configs").glob("*.py")) if "LEARNING" not in path.read_text()]


def measure(path):
    """Row of one config: the plan for the first pod that fits, or for the last one."""
    batch = configs.load(path).batch
    roomy = [pod for pod in PODS[:-2] if batch <= IMAGES * math.prod(plan.parts_of(pod)[2])]
    for pod in OWN.get(path.stem, roomy + list(PODS[-2:])):
        started = time.monotonic()
        command = [sys.executable, "-m", "ssljax.plan", "--config", f"configs/{path.name}", "--topology", pod, "--json"]
        command += ["--quick"] * FLAGS.quick
        row = {"file": path.name, "topology": pod, "fits": False}
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=FLAGS.limit)
            if done.returncode:
                row["error"] = " ".join((done.stderr.strip() or "no message").splitlines()[-1].split())[:300]
            else:
                row |= json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            row["error"] = f"not done after {FLAGS.limit} s"
        row |= {"plan_seconds": round(time.monotonic() - started, 1), "commit": commit()}
        if row["fits"]:
            break
    return row


def line(row):
    """What a config's docstring says of its plan."""
    mesh = ",".join(f"{axis}={n}" for axis, n in row["mesh"].items() if n > 1)
    about, uncounted = ("", "") if "bytes" in row else ("about ", "; HBM's traffic not counted")
    total, capacity = (row[name] / 2**30 for name in ("total", "capacity"))
    bounded = row["bound"].replace("products", "matrix products") + uncounted
    return (f"{MARK}{row['topology']}, {mesh}: {about}{total:.1f} of {capacity:.0f} GiB a chip, "
            f"at most {row['images_per_second']:,.0f} images/s ({bounded}).")  # fmt: skip


def kept(out):
    """{file: its latest row that fits; one of a whole plan before those of quick ones}."""
    rows = stored(out)
    rows.sort(key=lambda row: "bytes" in row)  # stable
    return {row["file"]: row for row in rows if row["fits"]}


def with_line(text, said):
    """A config's source whose docstring ends with the line of its plan."""
    old = ast.get_source_segment(text, ast.parse(text).body[0].value)[3:-3]  # as written: a value has no backslashes at ends of lines
    body = "\n".join(x for x in old.rstrip().splitlines() if not x.startswith(MARK))
    return text.replace(old, f"{body}\n{said}\n", 1)


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    if FLAGS.write:
        for file, row in kept(FLAGS.out).items():
            path = ROOT / "configs" / file
            path.write_text(with_line(path.read_text(), line(row)))
        return
    table, done = [], {} if FLAGS.again else {file for file, row in kept(FLAGS.out).items() if FLAGS.quick or "bytes" in row}
    for path in paper_configs():
        if FLAGS.only in path.stem and path.name not in done:
            table.append(measure(path))
            keep(table[-1:], FLAGS.out)
            print(f"{path.name}: {table[-1].get('error') or line(table[-1])}", file=sys.stderr, flush=True)
    print("| config | pod | batch | HBM GiB a chip | TFLOPs a chip and step | images/s at most | bound | seconds |\n|" + " --- |" * 8)
    for row in table:
        if "error" in row:
            print(f"| {row['file']} | {row['topology']} | {row['error']} |" + " |" * 5)
            continue
        print(f"| {row['file']} | {row['topology']} | {row['batch']} | {row['total'] / 2**30:.1f} | {row['flops'] / 1e12:.2f} | "
              f"{row['images_per_second']:,.0f} | {row['bound']} | {row['plan_seconds']} |")  # fmt: skip
    if FLAGS.json:
        print(json.dumps(table))


if __name__ == "__main__":
    cli.command(main)
