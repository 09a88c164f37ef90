"""What may befall a run, in this process: signals, locks, slow steps, silent peers, numbers that are not finite, damaged checkpoints.

The launched program, launch/bench/faults.py, does it to real processes; here the loop trains a method of nine weights.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading

import jax
import numpy as np
import pytest

from ssljax import checkpoint, faults, trees
from ssljax import config as configs
from ssljax.errors import Preempted, UserError
from ssljax.train import train
from tests.conftest import ROOT

pytestmark = pytest.mark.quick

METHOD = '''
"""Toy: a linear map of the mean colour, whose loss is nan at the steps it is told."""

import dataclasses

import jax.numpy as jnp

from ssljax import trees
from ssljax.fields import arg
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class Toy(Method):
    """Regress the mean colour; the teacher, a moving average, is the state that is easy to forget."""

    bad: tuple = arg((), "steps at which the loss is nan")
    encoder = None

    def schedules(self, run):
        return {"nan": lambda step: jnp.where(jnp.isin(step, jnp.asarray([-1, *self.bad])), jnp.nan, 0.0).astype(jnp.float32)}

    def init(self, rng, batch):
        params = {"map": jnp.eye(3), "shift": jnp.zeros(3)}
        return params, {"teacher": trees.copy(params)}

    def encode(self, params, extra, batch, rng, s):
        return {"h": batch["views"].mean((1, 2, 3)) @ params["map"] + params["shift"]}, extra

    def objective(self, params, extra, encodings, batch, s):
        target = batch["views"].mean((1, 2, 3))[:, ::-1]
        return jnp.square(encodings["h"] - target).mean() + s["nan"] * params["shift"].sum(), (extra, {"gradient": s["nan"]})

    def after_step(self, params, extra, s):
        return {"teacher": trees.ema(extra["teacher"], params, 0.9)}

    def embed(self, params, extra, batch):
        return {"features": batch["image"].mean((1, 2)) @ params["map"]}
'''


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Six steps, saved at every second."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "toy_faults.py").write_text(textwrap.dedent(METHOD))
    monkeypatch.syspath_prepend(tmp_path / "path")
    made = configs.make(
        steps=6,
        batch=8,
        method=dict(name="toy_faults"),
        data=dict(source="synthetic:n=24,height=8,width=8,classes=4", image_size=8, crop="device"),
        augment={"views": dict(count=1, size=8, brightness=0.4)},
        optim=dict(name="adamw", lr=dict(kind="cosine", peak=1e-2)),
        log=dict(every=1),
        checkpoint=dict(every=2, keep=3),
    )
    return made


def digest(out):
    return trees.sha256(out["state"])


def losses(workdir):
    return {row["step"]: row["loss"] for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())}


def at_batch(monkeypatch, number, action):
    """`action()` as the loop asks for its batch of that number, counted from 1: a moment that depends on no clock."""
    from ssljax.data import pipeline

    class Counted(pipeline.Prefetch):
        count = 0

        def __next__(self):
            Counted.count += 1
            if Counted.count == number:
                action()
            return super().__next__()

    monkeypatch.setattr(pipeline, "prefetch", Counted)


# --------------------------------------------------------------------------------------------------------------- preemption
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.thorough
def test_a_signal_saves_after_the_step_and_the_next_start_ends_with_the_same_bits(config, tmp_path, monkeypatch, number):
    whole = train(config, tmp_path / "whole")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_batch(patch, 3, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Preempted, match="step 3 of 6.*same command"):
            train(config, tmp_path / "run")
    assert signal.getsignal(number) is before
    assert checkpoint.Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).latest() == 3
    assert digest(train(config, tmp_path / "run")) == digest(whole)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_the_command_exits_with_75(monkeypatch, capsys):
    from ssljax import cli

    def main(argv):
        raise Preempted("stopped by a signal at step 3")

    with pytest.raises(SystemExit) as stopped:
        cli.command(main)
    assert stopped.value.code == 75 and capsys.readouterr().err == "stopped by a signal at step 3\n"


def test_a_process_that_fails_alone_does_not_wait_for_the_others_and_names_them(monkeypatch, capsys):
    class Client:
        def wait_at_barrier(self, name, milliseconds):
            raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out. Some timed out task names:\n1\n [type.googleapis.com/x='']")

        def key_value_dir_get(self, prefix):
            return [(f"{prefix}1", "there, in 'step' of step 3 (7)")]

    with pytest.raises(SystemExit) as stopped:
        faults.leave(2)
    assert stopped.value.code == 2
    monkeypatch.setattr(faults, "_client", Client)
    monkeypatch.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(KeyboardInterrupt(code)))  # what ends at once
    with pytest.raises(KeyboardInterrupt, match="3"):
        faults.leave(3)
    assert capsys.readouterr().err == "process 1 does not answer, it was there, in 'step' of step 3: look there first\n"


def test_the_second_signal_is_the_systems_own():
    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    with faults.Stop() as stop:
        assert not stop.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reached(2)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before


# ---------------------------------------------------------------------------------------------------- damaged and changed
def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_flipped_byte_is_named_fallen_back_from_and_replaced(config, tmp_path, capfd):
    whole = train(config, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    file = max((folder / "6" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    flip(file)
    assert digest(train(config, tmp_path / "run")) == digest(whole)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "damaged" in line]
    assert f"{folder / '6'} is damaged" in line and file.name in line and "falling back to step 4" in line
    assert checkpoint.Checkpoints(folder, read_only=True).latest() == 6  # saved anew


@pytest.mark.thorough
def test_a_changed_config_is_named_before_anything_is_touched(config, tmp_path, capsys):
    config.steps = 2
    train(config, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != "lock"}
    config.update(steps=3, batch=16, nan="skip:2")
    config.optim.lr.peak = 0.5
    with pytest.raises(UserError, match=r"step 2 .*config.batch: 8, now 16; config.optim.lr.peak: 0.01, now 0.5\..*--allow_changes"):
        train(config, tmp_path / "run")
    config.batch, config.optim.lr.peak = 8, 1e-2
    config.data.source = "synthetic:n=32,height=8,width=8,classes=4"
    with pytest.raises(UserError, match="the data: .* does not hold the records"):
        train(config, tmp_path / "run")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != "lock"}
    assert int(train(config, tmp_path / "run", allow_changes=True)["state"].step) == 3
    assert "resuming in spite of changes: the data" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------- non-finite
@pytest.mark.thorough
def test_halt_names_the_batch_and_the_layer_and_saves_nothing_of_it(config, tmp_path):
    whole = train(config, tmp_path / "whole")
    assert not (tmp_path / "whole" / "nonfinite.json").exists()
    config.method.bad = (3,)
    with pytest.raises(UserError, match="the loss is nan.* at step 4: .*1 of 2 parameters have no finite gradient, first shift"):
        train(config, tmp_path / "run")
    told = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert told["step"] == 4 and told["metrics"]["loss"] == "nan"
    assert len(set(told["ids"])) == 8 and set(told["gradient_norms"]) == {"map", "shift"}
    assert told["gradient_norms"]["shift"] == "nan" and told["gradient_norms"]["map"] > 0
    stored = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints", read_only=True)
    assert stored.latest() == 2
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), whole["state"])
    both = [checkpoint.Checkpoints(tmp_path / name / "checkpoints", read_only=True).restore(shapes, 2) for name in ("run", "whole")]
    assert trees.sha256(both[0]) == trees.sha256(both[1])


@pytest.mark.thorough
def test_skipped_steps_move_nothing_but_the_step(config, tmp_path, capfd):
    config.method.bad, config.nan, config.checkpoint.every = (1, 3, 4), "skip:2", 1
    config.checkpoint.keep = 10
    out = train(config, tmp_path / "run")
    stored = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints", read_only=True)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), out["state"])
    states = {step: stored.restore(shapes, step) for step in range(1, 7)}
    sums = {step: trees.sha256(dataclasses.replace(state, step=np.int32(0))) for step, state in states.items()}
    assert sums[1] == sums[2] and sums[3] == sums[4] == sums[5] and len(set(sums.values())) == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states[6]))
    said = capfd.readouterr().err
    assert "step 5: loss nan" in said and "2 in a row, 2 allowed" in said
    config.nan = "skip:1"
    with pytest.raises(UserError, match="at step 5"):
        train(config, tmp_path / "again")


@pytest.mark.parametrize("policy", ["hlat", "skip", "skip:0", "skip:-1", "skip:x", ""])
def test_another_word_for_nan_is_an_error(config, policy):
    config.nan = policy
    with pytest.raises(UserError, match=f"config.nan='{policy}': expected halt, or skip:K"):
        configs.build(config)


# ------------------------------------------------------------------------------------------------------------------ the lock
def test_two_runs_in_one_workdir(tmp_path):
    with faults.lock(tmp_path / "deep" / "run") as left:
        assert left == ""
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on "):
            with faults.lock(tmp_path / "deep" / "run"):
                pass
    with faults.lock(tmp_path / "deep" / "run") as left:
        assert left == ""


def test_what_a_killed_run_leaves_behind_is_told_and_taken_over(tmp_path):
    program = "import os, sys; from ssljax import faults\nwith faults.lock(sys.argv[1]): os.kill(os.getpid(), 9)"
    killed = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT)
    assert killed.wait() == -9
    with faults.lock(tmp_path) as left:
        assert left.startswith(f"process {killed.pid} on ")


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir .*file/run cannot be written: Not a directory"):
        with faults.lock(tmp_path / "file" / "run"):
            pass


def test_a_workdir_that_vanishes_is_named(config, tmp_path, monkeypatch):
    config.log.every = 6  # the checkpoint is what misses it first
    at_batch(monkeypatch, 2, lambda: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(UserError, match="checkpoints is gone: step 2 was not saved"):
        train(config, tmp_path / "run")


# ------------------------------------------------------------------------------------------------------------------ watchdog
def test_the_watchdog_names_the_phase_of_a_slow_step_once():
    now, said = [0.0], []
    watch = faults.Watchdog(least=1.0, index=3, say=said.append, clock=lambda: now[0])

    def step(number, read, compute):
        watch("read", number)
        now[0] += read
        watch("step", number)
        now[0] += compute

    step(0, 0.1, 100.0)  # compiles: it is neither slow nor does it shift the median
    for number in range(1, 6):
        step(number, 0.1, 0.4)
        watch.look()
    now[0] += 4.0  # 9 times the median
    watch.look()
    assert not said
    now[0] += 1.0
    watch.look()
    watch.look()
    assert len(said) == 1 and "process 3: in 'step' of step 5 for 6 s, where the median is 0.5 s" in said[0]
    watch("read", 6)
    now[0] += 60.0
    watch.look()
    assert "in 'read' of step 6 for 60 s" in said[1]
    watch("evaluation", 6)
    now[0] += 600.0
    watch.look()
    assert len(said) == 2  # the first evaluation: nothing to compare it with


class Board:
    """JAX's key-value store, as far as the watchdog knows it."""

    def __init__(self):
        self.said, self.broken = {}, False

    def key_value_set(self, key, value, allow_overwrite=False):
        if self.broken:
            raise RuntimeError("UNAVAILABLE")
        self.said[key] = value

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in self.said.items() if key.startswith(prefix)]


def test_the_watchdog_names_a_silent_peer_and_its_phase():
    now, said, board = [0.0], [], Board()
    here, there = (faults.Watchdog(patience=10.0, index=index, client=board, say=said.append, clock=lambda: now[0]) for index in (0, 1))
    here("step", 7)
    there("read", 7)
    for _ in range(8):
        here.listen()
        there.listen()
        now[0] += 3.0
    assert not said
    for _ in range(8):
        here.listen()
        now[0] += 3.0
    (line,) = said
    assert "process 1 has been silent for 12 s; it was " in line and "in 'read' of step 7. This is process 0, " in line
    assert line.endswith("in 'step' of step 7")
    there.listen()
    here.listen()
    board.broken = True
    there.listen()
    there.listen()
    assert len(said) == 2 and "process 0, which the others meet at, does not answer; this is process 1" in said[1]


def test_the_watchdogs_thread_looks_and_ends():
    looked = threading.Event()
    watch = faults.Watchdog(interval=0.001)
    watch.look = looked.set
    with watch:
        assert looked.wait(10)
    assert not watch._thread.is_alive()
