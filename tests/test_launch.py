"""The launch scripts: what they would execute, word by word, and what they do when a process fails or is told to go."""

import os
import pathlib
import shlex
import subprocess
import sys

import pytest

pytestmark = pytest.mark.quick

LAUNCH = pathlib.Path(__file__).resolve().parents[1] / "launch"
TRAIN = ["--config", "configs/a b.py:batch=8", "--config.name=it's $HOME; *", "--workdir", "gs://bucket/run"]
POD = ["--name", "pod", "--zone", "us-east5-b", "--type", "v6e-16", "--version", "v2-alpha-tpuv6e"]


def launch(script, *args, path=None, **env):
    """Runs the script by bash; `path` is a folder of stand-in programs that come first."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("SLURM_JOB_ID", "XLA_FLAGS", "PYTHONPATH", "PYTHON")}
    env = {**inherited, **{name: str(value) for name, value in env.items()}}
    if path is not None:
        env["PATH"] = f"{path}:{env['PATH']}"
    return subprocess.run(["bash", LAUNCH / script, *args], env=env, capture_output=True, text=True, timeout=60)


def stand_in(folder, name, script):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/usr/bin/env bash\n" + script)
    (folder / name).chmod(0o755)
    return folder


def recorder(folder, name):
    """A program that notes its arguments, one a line, and does nothing."""
    return stand_in(folder, name, f'printf "%s\\n" "$@" >> "{folder}/{name}.called"\n')


# The last line of a stand-in, before a shell command: runs that with SIGTERM held back, takes it, says so and exits.
UNTIL_TOLD = f"""exec {sys.executable} -S -c '
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.system(sys.argv[1])
signal.sigwait([signal.SIGTERM])
print("saved", os.environ.get("SSLJAX_PROCESS_ID"))
sys.exit(9)' """


def words(output):
    """Printed commands -> argument lists, as a shell would split them."""
    return [shlex.split(line) for line in output.splitlines()]


@pytest.mark.parametrize("script", ["local_multiprocess.sh", "tpu_vm.sh", "slurm.sbatch"])
def test_help_and_bad_calls(script):
    done = launch(script, "--help")
    assert done.returncode == 0 and "ssljax.train" in done.stdout
    done = launch(script)
    assert done.returncode == 2 and done.stderr and not done.stdout


# --------------------------------------------------------------------------------------------------------------- TPU VM
def test_tpu_dry_run_calls_nothing(tmp_path):
    fakes = recorder(tmp_path / "bin", "gcloud")
    done = launch("tpu_vm.sh", "all", *POD, "--dry-run", "--", *TRAIN, path=fakes)
    assert done.returncode == 0, done.stderr
    assert not (fakes / "gcloud.called").exists()
    create, pack, copy, remove, setup, run, logs = words(done.stdout)
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
    where = ["--zone=us-east5-b"]
    assert create == [*tpu, "create", "pod", *where, "--accelerator-type=v6e-16", "--version=v2-alpha-tpuv6e"]
    archive = remove[-1]
    assert pack[0] == "tar" and archive in pack and not pathlib.Path(archive).exists()
    assert copy == [*tpu, "scp", archive, "pod:ssljax.tar.gz", *where, "--worker=all"]
    assert setup[:-1] == [*tpu, "ssh", "pod", *where, "--worker=all"]
    assert "-r requirements.txt 'jax[tpu]'" in setup[-1]
    assert run[:-1] == [*tpu, "ssh", "pod", *where, "--worker=all"] and run[-1].startswith("--command=")
    assert logs[:-1] == [*tpu, "ssh", "pod", *where, "--worker=0"]


def test_tpu_queued_spot_project_and_delete():
    place = ["pod", "--zone=us-east5-b", "--project=my project"]
    done = launch("tpu_vm.sh", "create", *POD, "--project", "my project", "--queued", "--spot", "--dry-run")
    queued = ["gcloud", "compute", "tpus", "queued-resources"]
    options = ["--accelerator-type=v6e-16", "--spot", "--node-id=pod", "--runtime-version=v2-alpha-tpuv6e"]
    assert words(done.stdout) == [
        [*queued, "create", *place, *options],
        [*queued, "describe", *place, "--format=value(state.state)"],
    ]
    done = launch("tpu_vm.sh", "delete", "--name", "pod", "--zone", "z", "--queued", "--dry-run")
    assert words(done.stdout) == [[*queued, "delete", "pod", "--zone=z", "--force", "--quiet"]]
    done = launch("tpu_vm.sh", "delete", "--name", "pod", "--zone", "z", "--dry-run")
    assert words(done.stdout) == [["gcloud", "compute", "tpus", "tpu-vm", "delete", "pod", "--zone=z", "--quiet"]]


def test_tpu_real_run_hands_over_the_same_words(tmp_path):
    """Not dry: gcloud gets the printed argument list, and a worker's shell splits the command into our words again."""
    fakes = recorder(tmp_path / "bin", "gcloud")
    args = ["run", "--name", "pod", "--zone", "z"]
    (printed,) = words(launch("tpu_vm.sh", *args, "--dry-run", "--", *TRAIN).stdout)
    done = launch("tpu_vm.sh", *args, "--", *TRAIN, path=fakes)
    assert done.returncode == 0, done.stderr
    assert (fakes / "gcloud.called").read_text().splitlines() == printed[1:]
    # The worker: its home holds the repository, whose interpreter notes what it is given and exits with 7.
    worker = tmp_path / "home" / "ssljax"
    stand_in(tmp_path / "home", "unused", "")
    (worker / ".venv" / "bin").mkdir(parents=True)
    stand_in(worker / ".venv" / "bin", "python", 'printf "%s\\n" "$@"; exit 7\n')
    (follow,) = words(launch("tpu_vm.sh", "logs", "--name", "pod", "--zone", "z", "--dry-run").stdout)
    for command, code in ((printed, 0), (follow, 7)):
        remote = command[-1].removeprefix("--command=")
        done = subprocess.run(["bash", "-c", remote], cwd=tmp_path / "home", capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
    assert done.stdout.splitlines() == ["-m", "ssljax.train", "--distributed", *TRAIN]


@pytest.mark.parametrize(
    "args, message",
    [
        (["launch"], "unknown command launch"),
        (["create", "--zone", "z"], "--name is missing"),
        (["create", "--name", "n", "--zone", "z"], "--type is missing"),
        (["run", "--name", "n", "--zone", "z"], "arguments of ssljax.train are missing"),
        (["run", "--name", "n", "--zone"], "--zone needs a value"),
        (["run", "--name", "n", "--config", "c.py"], "unknown option --config"),
    ],
)
def test_tpu_mistakes(args, message):
    done = launch("tpu_vm.sh", *args, "--dry-run")
    assert done.returncode == 2 and message in done.stderr and not done.stdout


# ---------------------------------------------------------------------------------------------------------------- SLURM
def test_slurm_dry_run():
    done = launch("slurm.sbatch", "--dry-run", *TRAIN, PYTHON="/opt/py thon")
    root = str(LAUNCH.parent)
    assert words(done.stdout) == [
        ["srun", "--kill-on-bad-exit=1", f"--chdir={root}"] + ["/opt/py thon", "-m", "ssljax.train", "--distributed", *TRAIN]
    ]
    done = launch("slurm.sbatch", *TRAIN)
    assert done.returncode == 2 and "sbatch" in done.stderr


def test_slurm_job(tmp_path):
    """In a job: the exit code is srun's; the warning signal ends the tasks and puts the job back in the queue."""
    fakes = tmp_path / "bin"
    stand_in(fakes, "srun", 'echo "$@"; exit 5\n')
    recorder(fakes, "scontrol")
    job = {"SLURM_JOB_ID": 42, "SLURM_SUBMIT_DIR": tmp_path, "PYTHON": "python"}
    done = launch("slurm.sbatch", "--workdir", "w", path=fakes, **job)
    assert done.returncode == 5 and f"--chdir={tmp_path} python -m ssljax.train" in done.stdout
    assert not (fakes / "scontrol.called").exists()
    # srun warns its parent, the batch script, as SLURM would, and ends as its tasks do when they are told to.
    pid_file = tmp_path / "srun.pid"
    stand_in(fakes, "srun", f"echo $$ > '{pid_file}'\nparent=$PPID\n{UNTIL_TOLD} \"kill -USR1 $parent\"\n")
    stand_in(fakes, "scancel", f'[[ "$*" == "--signal=TERM 42" ]] && kill -TERM "$(cat "{pid_file}")"\n')
    done = launch("slurm.sbatch", "--workdir", "w", path=fakes, **job)
    assert done.returncode == 0, done.stderr
    assert (fakes / "scontrol.called").read_text().splitlines() == ["requeue", "42"]


# ------------------------------------------------------------------------------------------------------ local processes
def test_local_dry_run():
    python = {"PYTHON": "python", "XLA_FLAGS": "--xla_foo=1"}
    done = launch("local_multiprocess.sh", "--dry-run", "2", "3", "--", *TRAIN, **python)
    commands = words(done.stdout)
    assert len(commands) == 2
    for process, command in enumerate(commands):
        assert command[0] == "env" and command[-3 - len(TRAIN) :] == ["python", "-m", "ssljax.train", *TRAIN]
        assert {
            "SSLJAX_COORDINATOR=localhost:PORT", "SSLJAX_NUM_PROCESSES=2", f"SSLJAX_PROCESS_ID={process}",
            "XLA_FLAGS=--xla_foo=1 --xla_force_host_platform_device_count=3", "JAX_PLATFORMS=cpu",
        } <= set(command)  # fmt: skip
    default = launch("local_multiprocess.sh", "--dry-run", "1", "--", "--workdir", "w")
    assert "device_count=4" in default.stdout


@pytest.mark.parametrize("args", [["2"], ["--", "x"], ["0", "--", "x"], ["2", "4", "8", "--", "x"], ["two", "--", "x"]])
def test_local_mistakes(args):
    done = launch("local_multiprocess.sh", *args)
    assert done.returncode == 2 and done.stderr.startswith("local_multiprocess.sh: ")


FAKE_PYTHON = """
if [[ "$1" == -c ]]; then echo 12345; exit; fi
echo "process $SSLJAX_PROCESS_ID at $SSLJAX_COORDINATOR: $*"
"""


def test_local_success_shows_process_zero(tmp_path):
    fakes = stand_in(tmp_path / "bin", "python", FAKE_PYTHON)
    done = launch("local_multiprocess.sh", "3", "--", "--workdir", "a b", PYTHON=fakes / "python")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "process 0 at localhost:12345: -m ssljax.train --workdir a b\n" and not done.stderr


def test_local_failure_ends_all(tmp_path):
    """Process 1 fails; 0 and 2 would go on for an hour, deaf to SIGTERM, as a process inside a collective may be."""
    deaf = "trap '' TERM\nexec sleep 3600\n"
    script = FAKE_PYTHON + 'if [[ "$SSLJAX_PROCESS_ID" == 1 ]]; then echo "out of luck" >&2; exit 3; fi\n' + deaf
    fakes = stand_in(tmp_path / "bin", "python", script)
    done = launch("local_multiprocess.sh", "3", "--", "x", PYTHON=fakes / "python")
    assert done.returncode == 3
    assert "out of luck" in done.stderr and "process 1 ended first, with exit code 3" in done.stderr


def test_local_passes_sigterm_on(tmp_path):
    """Every process gets it, ends by itself, and the exit code tells."""
    ready = tmp_path / "ready"
    zero = f'{UNTIL_TOLD} "touch {ready}"\n'
    one = f'{UNTIL_TOLD} "until test -e {ready}; do :; done; kill -TERM $PPID"\n'
    script = f'{FAKE_PYTHON}if [[ "$SSLJAX_PROCESS_ID" == 0 ]]; then {zero}else {one}fi\n'
    fakes = stand_in(tmp_path / "bin", "python", script)
    done = launch("local_multiprocess.sh", "2", "--", "x", PYTHON=fakes / "python")
    assert done.returncode == 9
    assert "saved 0" in done.stdout and "saved 1" in done.stderr


def test_local_stopped_processes_are_left_to_save(tmp_path):
    """Process 1 has saved first, with exit code 75; process 0 does so only when the script has taken notice of that."""
    pid = tmp_path / "pid"
    zero = f"until [[ -s {pid} ]]; do :; done; until [[ ! -e /proc/$(<{pid}) ]]; do :; done\nexec {sys.executable} -S -c "
    zero += """'print("saved 0"); raise SystemExit(75)'\n"""
    script = f'{FAKE_PYTHON}if [[ "$SSLJAX_PROCESS_ID" == 1 ]]; then echo $$ > {pid}; exit 75; fi\n{zero}'
    fakes = stand_in(tmp_path / "bin", "python", script)
    done = launch("local_multiprocess.sh", "2", "--", "x", PYTHON=fakes / "python")
    assert done.returncode == 75 and "saved 0" in done.stdout and not done.stderr
