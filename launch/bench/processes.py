"""Every method by two processes that are told to stop, then by four that go on and evaluate: the state of a whole run of one process.

    python launch/bench/processes.py                            # all methods that no row says hold, two hours on two CPU cores
    python launch/bench/processes.py --method moco,siglip --json

The eight fake devices, the config (of a method's small one, shrunk, without colours) and the data are the same throughout. Every process is
a real one, started by `ssljax.train`'s own command line, told by SIGTERM, met over gloo; only Python's imports are shared, by a fork, since
they are a third of a start. The exit code is 1 if a row fell short. Nothing outside a scratch folder and --out is written.
"""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import signal
import sys
import tempfile
import time

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launch.bench import faults  # noqa: E402
from launch.bench.faults import FellShort, hold, read, steps_logged  # noqa: E402
from launch.bench.rows import commit, keep, markdown, stored  # noqa: E402
from ssljax import cli  # noqa: E402
from ssljax.errors import Preempted, UserError  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_list("method", ["all"], "methods whose small config is run; all: those not held by a row of --out yet", flag_values=FLAGS)
flags.DEFINE_string("out", str(ROOT / "launch/bench/results/processes.jsonl"), "rows are appended here", flag_values=FLAGS)
flags.DEFINE_bool("json", False, "end with one JSON line of the whole table", flag_values=FLAGS)

DEVICES = 8
STEPS = 10
TOLD = 2  # steps after which one is told to stop: the rest are room for all to hear of it
COLUMNS = ("method", "outcome", "stopped_at", "params_apart", "opt_apart", "extra_apart", "loss_apart", "judged", "detail", "seconds")
# What a start imports before it touches a device.
IMPORTS = "tensorflow orbax.checkpoint optax flax.linen launch.bench.processes ssljax.train ssljax.program ssljax.inputs".split()


def get_config(arg=""):
    """What every run here trains: `--config launch/bench/processes.py:method=dino`."""
    config = faults.without_colours(faults.get_config(f"{arg},steps={STEPS}"))
    config.checkpoint.update(every=STEPS, keep=2)
    return config


# ------------------------------------------------------------------------------------------------------------------ processes
def train(words, environment, log):
    """In a forked process: what `python -m ssljax.train` does."""
    with open(log, "ab", buffering=0) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    os.environ.update(environment)
    sys.argv = ["ssljax.train", *words]
    from ssljax.train import main

    try:
        cli.command(main)
    finally:
        import jax

        if jax.distributed.is_initialized():  # as at a process' own end, which a fork skips
            jax.distributed.shutdown()
        sys.stdout.flush()


@dataclasses.dataclass
class Start:
    """`count` processes of one run. What each writes is in its `log`."""

    workdir: pathlib.Path
    count: int
    words: tuple

    def __post_init__(self):
        devices = f"{faults.SOON} --xla_force_host_platform_device_count={DEVICES // self.count}"
        # One as well is told where to meet: then its devices, too, add up over gloo, in gloo's order.
        among = dict(SSLJAX_COORDINATOR=f"localhost:{faults.free_port()}", SSLJAX_NUM_PROCESSES=str(self.count), XLA_FLAGS=devices)
        words = ("--workdir", str(self.workdir), *self.words)
        self.processes = []
        for index in range(self.count):
            self.log(index).unlink(missing_ok=True)
            arguments = (words, {**among, "SSLJAX_PROCESS_ID": str(index)}, self.log(index))
            self.processes.append(multiprocessing.get_context("forkserver").Process(target=train, args=arguments))
            self.processes[-1].start()

    def log(self, index):
        return self.workdir.with_suffix(f".{index}.log")

    def said(self):
        return "".join(f"---- process {i}\n{self.log(i).read_text(errors='replace')[-1500:]}" for i in range(self.count))

    def poll(self):
        """As subprocess.Popen's: None while one of them runs."""
        return None if any(process.is_alive() for process in self.processes) else 0

    def wait(self, code, limit=faults.LIMIT):
        """Until all have ended, each with `code`. Raises FellShort."""
        end = time.monotonic() + limit
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        hold(set(codes) == {code}, f"exit codes {codes} of {self.count} processes, not {code}: {self.said()}")


def run(*arguments, code, during=lambda start: None):
    """A Start of these arguments, in which `during` happens, until all have ended with `code`; up to three if the processes miss each
    other. Raises FellShort."""
    for attempt in range(3):
        start = Start(*arguments)
        try:
            during(start)
            return start.wait(code)
        except FellShort:
            if attempt == 2 or faults.MISSED not in start.said():
                raise


# -------------------------------------------------------------------------------------------------------------------- a method
def check(method, scratch):
    """-> what a row says of it. Raises FellShort."""
    words = ("--config", f"launch/bench/processes.py:method={method}")
    whole, moved = scratch / "whole", scratch / "moved"

    def tell(two):
        faults.until(lambda: steps_logged(moved) >= TOLD, two)
        if two.poll() is None:
            os.kill(two.processes[1].pid, signal.SIGTERM)

    one = Start(whole, 1, words)
    try:
        run(moved, 2, words, code=Preempted.CODE, during=tell)
        one.wait(0)
    finally:
        for process in one.processes:
            process.kill()
    stopped = faults.steps_of(moved)[-1]
    hold(stopped < STEPS, f"the two were through before they were told: {stopped} steps")
    run(moved, 4, (*words, f"--config.evals.every={STEPS}"), code=0)

    want, got = read(whole, STEPS), read(moved, STEPS)
    apart = {part: faults.distance(want.get(part, {}), got.get(part, {})) for part in ("params", "opt", "extra")}
    apart["loss"] = faults.losses_apart(STEPS, whole, moved)
    row = {"stopped_at": stopped, **{f"{part}_apart": value for part, value in apart.items()}, "judged": len(faults.judged(moved))}
    far = [part for part, value in apart.items() if not value <= 1e-6]
    return row | {"outcome": "fell short" if far else "holds", "detail": f"{', '.join(far)} more than 1e-6 apart" if far else ""}


def table(rows):
    form = lambda v: f"{v:.1e}" if isinstance(v, float) and v < 1 else str(v)  # noqa: E731
    return markdown(COLUMNS, [[form(row.get(column, "")) for column in COLUMNS] for row in rows])


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    known = faults.small_configs()
    held = {row["method"] for row in stored(FLAGS.out) if row["outcome"] == "holds"}
    methods = sorted(set(known) - held) if FLAGS.method == ["all"] else FLAGS.method
    if unknown := sorted(set(methods) - set(known)):
        raise UserError(f"--method={unknown[0]}: expected all, or some of {', '.join(sorted(known))}")
    # Read when JAX and TensorFlow are imported, which the processes are forked after.
    os.environ.update(JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="0", PYTHONUNBUFFERED="1")
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # a run's own
    os.chdir(ROOT)
    multiprocessing.get_context("forkserver").set_forkserver_preload(IMPORTS)
    rows = []
    for method in methods:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="processes-") as scratch:
            try:
                row = check(method, pathlib.Path(scratch))
            except (FellShort, UserError, OSError) as error:
                row = {"outcome": "fell short", "detail": " ".join(f"{error}".split())}
        rows.append({"method": method, **row, "seconds": round(time.monotonic() - started, 1), "commit": commit()})
        keep(rows[-1:], FLAGS.out)
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(table(rows))
    if FLAGS.json:
        print(json.dumps(rows))
    if any(row["outcome"] == "fell short" for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    cli.command(main)
