"""The loop, through its own front door: every config runs, a stopped run resumes bit for bit, bad input is one clear line."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

from launch.bench import faults
from ssljax import checkpoint, cli, program, sharding, trees
from ssljax import config as configs
from ssljax.train import places, train
from tests.conftest import CONFIGS, METHODS, ROOT, SPINE, raw_batch

# Those that test_contract.py does not run, and of them those that run here: of the methods that the loop's own tests take, and of those
# that no small config has. The step of any other method is compiled and run in its contract; of its other configs it is traced.
OTHERS = [path for path in CONFIGS if path not in METHODS.values()]
RUN = [path for path in OTHERS if (name := configs.load(path).method.name) in SPINE or name not in METHODS]


@pytest.mark.parametrize("path", [path for path in OTHERS if path not in RUN], ids=lambda path: path.stem)
def test_the_step_of_every_config_is_traced(path):
    config = configs.shrink(configs.load(path))
    config.data.crop = "device"
    built, raw = configs.build(config), raw_batch(config)
    run = program.make(config, built, sharding.make_mesh({"data": 8}, batch=config.batch), raw, examples=64)
    state, metrics = jax.eval_shape(run.train_step, run.shapes, raw)
    assert jax.tree.structure(state) == jax.tree.structure(run.shapes) and metrics["loss"].shape == ()
    for before, after in zip(jax.tree.leaves(run.shapes), jax.tree.leaves(state), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_a_config_runs_two_steps(path, tmp_path):
    out = train(configs.shrink(configs.load(path)), tmp_path)
    assert int(out["state"].step) == 2
    assert checkpoint.exists(tmp_path / "checkpoints")


@pytest.mark.parametrize("name", SPINE)
def test_ten_steps_a_restart_and_ten_steps_are_twenty(name, tmp_path):
    config = configs.shrink(configs.load(METHODS[name]))
    config.update(steps=20, mesh={"data": 4, "fsdp": 2, "tensor": 1})
    config.checkpoint.every = 10
    whole = train(config, tmp_path / "whole")
    # A second workdir holds what a run that was stopped after ten steps leaves behind.
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "10", tmp_path / "half" / "checkpoints" / "10")
    resumed = train(config, tmp_path / "half")
    assert int(resumed["state"].step) == 20
    assert trees.sha256(resumed["state"]) == trees.sha256(whole["state"])
    lines = [json.loads(line) for line in (tmp_path / "half" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(11, 21))
    straight = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [line["loss"] for line in straight[10:]]


def command(*words, **environment):
    """A fresh process, as a user starts it. -> exit code, stdout, stderr."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


SIMCLR = "configs/simclr_resnet_scenes.py"


@pytest.mark.quick
@pytest.mark.parametrize(
    "words, says",
    [
        (["--config.method.temprature=0.2"], ["config.method.temprature", "temperature"]),
        (["--config.method.temperature=warm"], ["config.method.temperature", "warm", "float"]),
        (["--config.batch=0"], ["config.batch", "0", "at least 1"]),
        (["--config.data.source=folder:/no/such/place"], ["/no/such/place"]),
        (["--config.data.source=tfds:no_such_set"], ["no_such_set"]),
        (["--config.optim.lr.kind=wavy"], ["config.optim.lr", "wavy", "cosine"]),
        (["--config.method.encoder.name=resnext"], ["resnext", "vit"]),
        (["--config.mesh.tensors=2"], ["mesh", "tensors"]),
        (["--workdri=x"], ["workdri"]),
    ],
    ids=lambda x: x[0].partition("=")[0].strip("-") if isinstance(x, list) and x[0].startswith("--") else "",
)
def test_bad_input_is_one_line_and_exit_code_2(words, says, tmp_path, monkeypatch, capsys):
    """In process, for speed; a device that is touched before the error would have to be made: forbid it."""
    import jax

    from ssljax import cli
    from ssljax import train as entry

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(jax, "devices", lambda *_: pytest.fail("a device was touched before the error"))
    argv = ["train.py", "--config", SIMCLR, "--workdir", str(tmp_path / "run"), *words]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stopped:
        cli.command(entry.main)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    for word in says:
        assert word in error
    assert not (tmp_path / "run").exists()


@pytest.mark.quick
def test_a_batch_that_the_mesh_does_not_divide_is_named(tmp_path):
    config = configs.shrink(configs.load(ROOT / SIMCLR))
    config.batch = 12
    from ssljax.errors import UserError

    with pytest.raises(UserError, match=r"config.batch=12 does not divide.*data=8"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.quick
def test_help_lists_the_keys_of_a_config_and_a_missing_config_is_an_error():
    code, out, _ = command("-m", "ssljax.train", "--config", SIMCLR, "--help")
    assert code == 0
    assert "--config.method.temperature=0.2  temperature of the softmax over similarities" in out
    assert "--workdir" in out
    code, _, error = command("-m", "ssljax.train", "--workdir", "x")
    assert code == 2 and "--config is missing" in error


@pytest.mark.quick
def test_checking_a_config_touches_no_device():
    """A pod's processes meet after the config is checked, and they cannot once a backend is up."""
    program = """
from jax._src import xla_bridge
from ssljax import config
for path in {paths!r}:
    config.build(config.load(path))
assert not xla_bridge.backends_are_initialized()
"""
    code, _, error = command("-c", program.format(paths=[str(path) for path in CONFIGS]))
    assert code == 0, error


def test_two_processes_of_four_devices_give_the_losses_of_one_of_eight(tmp_path):
    """The same command, `launch/local_multiprocess.sh 2 4`, and a single process with eight devices: batches, losses, all of it."""
    words = ["--config", f"{SIMCLR}:data=plain", "--shrink"]
    alone = train_shrunk(tmp_path / "alone")
    script = ["bash", "launch/local_multiprocess.sh", "2", "4", "--", *words, "--workdir", str(tmp_path / "two")]
    env = {**os.environ, "PYTHON": sys.executable, "XLA_FLAGS": faults.SOON}
    done = subprocess.run(script, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [json.loads(line)["loss"] for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert losses == pytest.approx(alone, rel=1e-6)
    # One program for both processes, kept by the first.
    assert len(list((tmp_path / "two" / "compiled").glob("jit_train_step-*-cache"))) == 1


def train_shrunk(workdir):
    train(configs.shrink(configs.load(ROOT / SIMCLR, "data=plain")), workdir)
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_as_many_threads_whatever_share_of_eight_devices_a_process_has(monkeypatch):
    """XLA splits some sums by them: with 16 a process of four devices would give other bits than one of eight with 32."""
    found = {}
    for devices in (1, 2, 4, 8, 16):
        monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count={devices}")
        monkeypatch.delenv("PJRT_NPROC", raising=False)
        cli.fake_devices()
        found[devices] = int(os.environ["PJRT_NPROC"])
    assert len({found[devices] for devices in (1, 2, 4, 8)}) == 1 and all(found[devices] >= 4 * devices for devices in found)


def test_import_and_a_train_step_where_tensorflow_raises(tmp_path):
    """TensorFlow is a package of the input pipeline alone."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise ImportError('TensorFlow must not be imported here')")
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r}); sys.path.insert(1, {str(ROOT)!r})
import importlib, pkgutil
import ssljax, ssljax.train, ssljax.evaluate, ssljax.losses, ssljax.evals.knn, ssljax.report
for folder in ("models", "losses", "methods", "augment"):
    package = importlib.import_module(f"ssljax.{{folder}}")
    for found in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"ssljax.{{folder}}.{{found.name}}")
from tests.conftest import METHODS, program_of, raw_batch
config, _, program = program_of(METHODS["simclr"], "1")
state, metrics = program.step(program.init(), program.put(raw_batch(config)))
assert float(metrics["loss"]) > 0
assert "tensorflow" not in sys.modules
print("a step without TensorFlow")
"""
    code, out, error = command("-c", program)
    assert code == 0 and "a step without TensorFlow" in out, error


def test_import_ssljax_is_quick():
    """Under three seconds warm, by Python's own account (microseconds, cumulative; the second of two imports)."""
    for _ in range(2):
        code, _, said = command("-X", "importtime", "-c", "import ssljax")
        assert code == 0, said
    lines = [line.split("|") for line in said.splitlines() if line.startswith("import time:") and "ssljax" in line]
    assert lines and int(lines[-1][1]) < 3_000_000, lines[-1]


def test_a_bucket_holds_the_checkpoints_and_this_machine_the_rest(tmp_path):
    assert places(tmp_path) == (tmp_path, tmp_path / "checkpoints")
    assert places("gs://bucket/runs/simclr/") == (pathlib.Path("runs/simclr"), "gs://bucket/runs/simclr/checkpoints")


def test_a_second_start_reads_its_programs_and_compiles_a_damaged_one_again(tmp_path):
    """What the command line keeps in WORKDIR/compiled, told by what JAX logs of it."""
    env = {"XLA_FLAGS": faults.SOON, "JAX_DEBUG_LOG_MODULES": "jax._src.compiler", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    said, losses = {}, {}
    for name in ("first", "second"):
        code, _, said[name] = command("-m", "ssljax.train", "--config", SIMCLR, "--shrink", "--workdir", str(tmp_path / name), **env)
        assert code == 0, said[name]
        losses[name] = [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        if name == "first":
            (step,) = (tmp_path / "first" / "compiled").glob("jit_train_step-*-cache")
            step.write_bytes(step.read_bytes()[:5000])
            env["JAX_COMPILATION_CACHE_DIR"] = str(step.parent)  # the second run's checkpoints are its own, its programs are not
    assert "Persistent compilation cache hit for" not in said["first"]
    assert "Persistent compilation cache hit for 'jit_init'" in said["second"]
    assert "Error reading persistent compilation cache entry for 'jit_train_step'" in said["second"]
    assert len(losses["first"]) == 2 and losses["first"] == losses["second"]


def test_where_programs_are_kept_is_jaxs_to_say(tmp_path):
    given = jax.config.jax_compilation_cache_dir
    try:
        cli.keep_programs(tmp_path)
        assert jax.config.jax_compilation_cache_dir == given
        jax.config.update("jax_compilation_cache_dir", None)
        cli.keep_programs(tmp_path)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", given)


def test_what_is_freed_stays_with_the_process_where_a_cpu_is_all_there_is():
    program = """
import resource, sys, threading
from ssljax import cli
if sys.argv[1] == "keep":
    cli.keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**27  # 128 MiB, written, and freed at once
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
for _ in range(3):
    thread = threading.Thread(target=faults)
    thread.start(), thread.join()
"""
    faults = {}
    for way in ("keep", "default"):
        done = subprocess.run([sys.executable, "-c", program, way], capture_output=True, text=True, check=True, cwd=ROOT)
        faults[way] = int(done.stdout.split()[-1])
    assert faults["keep"] < 1000 < 2**27 // 2**16 <= faults["default"], faults  # in pages of 4 to 64 KiB


def test_what_a_process_keeps_comes_in_huge_pages_where_the_system_gives_them_to_who_asks():
    program = """
import re, sys
from ssljax import cli
if sys.argv[1] == "keep":
    cli.keep_memory()
block = b"x" * 2**27
regions = re.split("(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read())
ends = lambda region: [int(end, 16) for end in region.split(" ", 1)[0].split("-")]
own, = (region for region in regions if region and ends(region)[0] <= id(block) + 2**26 < ends(region)[1])
print(" hg" in re.search("VmFlags:(.*)", own)[1], int(re.search("Rss: +([0-9]+)", own)[1]) * 1024 < 2**29)
"""
    huge, commit = (pathlib.Path(path) for path in ("/sys/kernel/mm/transparent_hugepage/enabled", "/proc/sys/vm/overcommit_memory"))
    asked = huge.exists() and "[madvise]" in huge.read_text() and commit.read_text().strip() != "2" and os.sysconf("SC_PAGE_SIZE") == 4096
    for way, expected in (("keep", asked), ("default", False)):
        done = subprocess.run([sys.executable, "-c", program, way], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.split() == [str(expected), "True"], (way, done.stdout)  # and asking takes no memory: 128 MiB are written
