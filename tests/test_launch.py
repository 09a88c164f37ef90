"""The launch scripts: what they would execute, word by word, and what they do when a process fails or is told to go."""

import functools
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

import pytest
import yaml

pytestmark = pytest.mark.quick

LAUNCH = pathlib.Path(__file__).resolve().parents[1] / "launch"
TRAIN = ["--config", "configs/a b.py:batch=8", "--config.name=it's $HOME; *", "--workdir", "gs://bucket/run"]
POD = ["--name", "pod", "--zone", "us-east5-b", "--type", "v6e-16", "--version", "v2-alpha-tpuv6e"]
HERE = ["--name", "pod", "--zone", "us-east5-b"]
JAX = ["-m", "ssljax.train"]


@functools.cache
def house():
    """A repository of the launchers and one config, in a folder whose name has to be quoted; it goes when pytest ends."""
    folder = tempfile.TemporaryDirectory()
    house.folder = folder  # held
    root = pathlib.Path(folder.name).resolve() / "the house"
    shutil.copytree(LAUNCH, root / "launch", ignore=shutil.ignore_patterns("bench", "__pycache__"))
    (root / "configs").mkdir()
    (root / "configs" / "a b.py").touch()
    return root


def launch(script, *args, path=None, cwd=None, **env):
    """Runs the script by bash; `path` is a folder of stand-in programs that come first."""
    drop = ("XLA_FLAGS", "PYTHONPATH", "PYTHON")
    inherited = {k: v for k, v in os.environ.items() if k not in drop and not k.startswith("SLURM_")}
    env = {**inherited, **{name: str(value) for name, value in env.items()}}
    if path is not None:
        env["PATH"] = f"{path}:{env['PATH']}"
    command = ["bash", house() / "launch" / script, *args]
    return subprocess.run(command, env=env, cwd=cwd or house(), capture_output=True, text=True, timeout=60)


def stand_in(folder, name, script):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/usr/bin/env bash\n" + script)
    (folder / name).chmod(0o755)
    return folder


# A program that takes the subcommands and flags of a table, and nothing else. It notes each call, and answers by the first reply left
# whose words begin the call: (words, what it prints, exit code); without one it says nothing and succeeds.
STRICT = f"""#!{sys.executable} -IS
import json, os, sys
me, args = os.path.abspath(sys.argv[0]), sys.argv[1:]
with open(me + ".json") as file:
    table, replies = json.load(file)
with open(me + ".called", "a") as file:
    file.write(json.dumps([args, sys.stdin.read() if "--filename=-" in args else ""]) + "\\n")

def refuse(why):
    with open(me + ".refused", "a") as file:
        file.write(f"{{why}}: {{args}}\\n")
    sys.exit(64)

globals_ = [a for a in args if a.split("=")[0] in table.get("*", [])]
rest = [a for a in args if a not in globals_]
command = next((c for c in sorted(table, key=len, reverse=True) if rest[: len(c.split())] == c.split()), None)
if command is None:
    refuse("no such subcommand")
count, flags, required = table[command]
rest, words, given = rest[len(command.split()) :], [], []
while rest:
    if rest[0].startswith("--"):
        flag, equals, value = rest.pop(0).partition("=")
        if flag not in flags or bool(equals) != flags[flag] or (equals and not value):
            refuse(f"flag {{flag}}")
        given.append(flag)
    else:
        words.append(rest.pop(0))
        if count is None:  # the rest belongs to a program
            break
if (count is not None and len(words) != count) or set(required) - set(given) or len(given) != len(set(given)):
    refuse("missing or repeated")
for i, (start, says, code) in enumerate(replies):
    if args[: len(start.split())] == start.split():
        del replies[i]
        with open(me + ".json", "w") as file:
            json.dump([table, replies], file)
        if says:
            print(says, file=sys.stderr if code else sys.stdout)
        sys.exit(code)
"""

# As `gcloud compute tpus ... --help` has them: {flag: takes a value}.
PLACE = {"--zone": True, "--project": True}
SSH = {**PLACE, "--worker": True}
QUEUE = {"--accelerator-type": True, "--runtime-version": True, "--node-id": True}
GCLOUD = {
    "compute tpus tpu-vm create": (
        1, {**PLACE, "--accelerator-type": True, "--version": True, "--spot": False}, ["--zone", "--accelerator-type", "--version"]
    ),
    "compute tpus tpu-vm ssh": (1, {**SSH, "--command": True}, ["--zone", "--worker", "--command"]),
    "compute tpus tpu-vm scp": (2, SSH, ["--zone", "--worker"]),
    "compute tpus tpu-vm describe": (1, {**PLACE, "--format": True}, ["--zone"]),
    "compute tpus tpu-vm delete": (1, {**PLACE, "--quiet": False}, ["--zone", "--quiet"]),
    "compute tpus queued-resources create": (1, {**PLACE, **QUEUE, "--spot": False}, ["--zone", *QUEUE]),
    "compute tpus queued-resources describe": (1, {**PLACE, "--format": True}, ["--zone"]),
    "compute tpus queued-resources delete": (1, {**PLACE, "--quiet": False, "--force": False}, ["--zone", "--quiet", "--force"]),
}  # fmt: skip
SHAPE = {"--nodes": True, "--ntasks-per-node": True, "--gpus-per-node": True, "--cpus-per-task": True, "--time": True, "--chdir": True}
SBATCH = {"": (None, SHAPE, list(SHAPE))}
SRUN = {"": (None, {"--kill-on-bad-exit": True, "--chdir": True, "--cpus-per-task": True}, ["--kill-on-bad-exit", "--chdir"])}
SCONTROL = {"requeue": (1, {}, [])}
KUBECTL = {
    "*": ["--context", "--namespace"],
    "apply": (0, {"--filename": True}, ["--filename"]),
    "get": (1, {"--output": True}, ["--output"]),
    "get pods": (0, {"--selector": True, "--sort-by": True, "--output": True}, ["--selector", "--sort-by", "--output"]),
    "logs": (1, {"--follow": False, "--since": True}, ["--follow"]),
    "delete": (1, {"--ignore-not-found": False}, ["--ignore-not-found"]),
}


def strict(folder, name, table, *replies):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(STRICT)
    (folder / name).chmod(0o755)
    (folder / f"{name}.json").write_text(json.dumps([table, replies]))
    return folder


def calls(folder, name):
    """The argument lists of all calls, none of which was refused and after which no reply is left."""
    refused = folder / f"{name}.refused"
    assert not refused.exists(), refused.read_text()
    assert json.loads((folder / f"{name}.json").read_text())[1] == []
    called = folder / f"{name}.called"
    return [json.loads(line)[0] for line in called.read_text().splitlines()] if called.exists() else []


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
    return [shlex.split(line) for line in output.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("script", ["local_multiprocess.sh", "tpu_vm.sh", "slurm.sbatch", "gke/submit.sh"])
def test_help_and_bad_calls(script):
    done = launch(script, "--help")
    assert done.returncode == 0 and "ssljax.train" in done.stdout and "--dry-run" in done.stdout
    done = launch(script)
    assert done.returncode == 2 and done.stderr and not done.stdout


TPU, SLICE, GPU = POD, ["--name", "n", "--image", "i", "--tpu", "tpu-v6e-slice", "--topology", "4x4"], ["--gpu", "nvidia-l4"]
CONFIG, GOOD = TRAIN[:2], ["--", *TRAIN]


@pytest.mark.parametrize(
    "script, args, message",
    [
        ("tpu_vm.sh", ["launch"], "unknown command launch"),
        ("tpu_vm.sh", ["create", "--zone", "us-east5-b"], "--name is missing"),
        ("tpu_vm.sh", ["create", "--name", "A_b", "--zone", "us-east5-b"], "--name A_b: expected lower-case"),
        ("tpu_vm.sh", ["create", *HERE], "--type is missing"),
        ("tpu_vm.sh", ["create", *HERE, "--type", "tpu", "--version", "v"], "--type tpu: expected an accelerator type"),
        ("tpu_vm.sh", ["delete", "--name", "n", "--zone", "us"], "--zone us: expected one like"),
        ("tpu_vm.sh", ["delete", *HERE, *GOOD], "delete starts no training"),
        ("tpu_vm.sh", ["run", *HERE], "arguments of ssljax.train are missing"),
        ("tpu_vm.sh", ["run", "--name", "n", "--zone"], "--zone needs a value"),
        ("tpu_vm.sh", ["run", "--name", "n", "--config", "c.py"], "unknown option --config"),
        ("tpu_vm.sh", ["run", *HERE, "--", "--workdir", "gs://b/r"], "--config is missing after --"),
        ("tpu_vm.sh", ["run", *HERE, "--", *CONFIG], "--workdir is missing after --"),
        (
            "tpu_vm.sh",
            ["run", *HERE, "--", "--config", "configs/no.py:a=b", "--workdir", "gs://b/r"],
            "--config configs/no.py:a=b: there is",
        ),
        ("tpu_vm.sh", ["run", *HERE, "--", "--config=/etc/passwd", "--workdir", "gs://b/r"], "expected a path within it"),
        ("tpu_vm.sh", ["run", *HERE, "--", *CONFIG, "--workdir=runs/x"], "--workdir runs/x: expected gs://BUCKET/NAME"),
        ("tpu_vm.sh", ["all", *POD, "--restarts", "many", *GOOD], "--restarts many: expected a whole number"),
        ("slurm.sbatch", TRAIN, "unknown option --config; arguments of ssljax.train go after --"),
        ("slurm.sbatch", ["--per", "core", *GOOD], "--per core: expected gpu or node"),
        ("slurm.sbatch", ["--nodes", "0", *GOOD], "--nodes 0: expected a whole number of at least 1"),
        ("slurm.sbatch", ["--time", "tomorrow", *GOOD], "--time tomorrow: expected minutes"),
        ("slurm.sbatch", ["--", *CONFIG], "--workdir is missing"),
        ("gke/submit.sh", ["apply", "--name", "n" * 41], "expected at most 40"),
        ("gke/submit.sh", ["apply", "--name", "n"], "--image is missing"),
        ("gke/submit.sh", ["apply", "--name", "n", "--image", "a b", *GPU, *GOOD], "--image a b: expected the name"),
        ("gke/submit.sh", ["apply", "--name", "n", "--image", "i", *GOOD], "--tpu or --gpu is missing"),
        ("gke/submit.sh", ["apply", *SLICE, *GPU, *GOOD], "expected one of them"),
        ("gke/submit.sh", ["apply", *SLICE[:5], "tpu-v9", "--topology", "4x4", *GOOD], "--tpu tpu-v9: expected tpu-v4-podslice"),
        ("gke/submit.sh", ["apply", *SLICE[:6], *GOOD], "--topology is missing"),
        ("gke/submit.sh", ["apply", *SLICE[:7], "2x2x2", *GOOD], "tpu-v6e-slice has 2 dimensions"),
        ("gke/submit.sh", ["apply", *SLICE, "--nodes", "3", *GOOD], "16 chips on 3 nodes; expected 4 a node"),
        ("gke/submit.sh", ["apply", *SLICE, "--claim", "data", *GOOD], "--claim data: expected CLAIM:PATH"),
        ("gke/submit.sh", ["apply", *SLICE, "--claim", "data:/data", "--", *CONFIG, "--workdir", "/tmp/x"], "or /data/NAME"),
        ("gke/submit.sh", ["apply", *SLICE, *GOOD, "a\nb"], "line break"),
        ("gke/submit.sh", ["logs", "--name", "n", *GOOD], "logs starts no training"),
        ("local_multiprocess.sh", ["2"], "expected: N [M] -- ARGUMENTS"),
        ("local_multiprocess.sh", GOOD, "expected N [M] before --"),
        ("local_multiprocess.sh", ["0", *GOOD], "N, the processes, 0: expected a whole number of at least 1"),
        ("local_multiprocess.sh", ["two", *GOOD], "N, the processes, two"),
        ("local_multiprocess.sh", ["2", "4", "8", *GOOD], "got: 2 4 8"),
        ("local_multiprocess.sh", ["2", "--restarts", "-1", *GOOD], "--restarts needs a value"),
        ("local_multiprocess.sh", ["2", "--restart", "1", *GOOD], "unknown option --restart"),
        ("local_multiprocess.sh", ["2", "--", *CONFIG], "--workdir is missing"),
    ],
)
def test_mistakes_start_nothing(script, args, message, tmp_path):
    """One line that names the option, exit code 2; and not even a dry run: any program would leave a mark."""
    fakes = tmp_path / "bin"
    for name in ("gcloud", "sbatch", "srun", "kubectl", "python"):
        strict(fakes, name, {})
    done = launch(script, *args, path=fakes, PYTHON="python")
    assert done.returncode == 2 and message in done.stderr and not done.stdout, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(f"{pathlib.Path(script).name}: ")
    assert not list(fakes.glob("*.called"))


# --------------------------------------------------------------------------------------------------------------- TPU VM
def test_tpu_dry_run_calls_nothing(tmp_path):
    fakes = strict(tmp_path / "bin", "gcloud", GCLOUD)
    done = launch("tpu_vm.sh", "all", *POD, "--dry-run", "--", *TRAIN, path=fakes)
    assert done.returncode == 0, done.stderr
    assert calls(fakes, "gcloud") == []
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
    assert "# PREEMPTED, or gone: gcloud compute tpus tpu-vm delete pod --zone=us-east5-b --quiet" in done.stdout


def test_tpu_queued_spot_project_and_delete(tmp_path):
    """Printed and done: the same words, which gcloud takes."""
    place = ["pod", "--zone=us-east5-b", "--project=my project"]
    queued = ["compute", "tpus", "queued-resources"]
    expected = {
        ("create", *POD, "--project", "my project", "--queued", "--spot"): [
            [*queued, "create", *place, "--accelerator-type=v6e-16", "--spot", "--node-id=pod", "--runtime-version=v2-alpha-tpuv6e"],
            [*queued, "describe", *place, "--format=value(state.state)"],
        ],
        ("create", *POD, "--spot"): [
            ["compute", "tpus", "tpu-vm", "create", *place[:2], "--accelerator-type=v6e-16", "--spot", "--version=v2-alpha-tpuv6e"]
        ],
        ("delete", *HERE, "--queued"): [[*queued, "delete", *place[:2], "--force", "--quiet"]],
        ("delete", *HERE): [["compute", "tpus", "tpu-vm", "delete", *place[:2], "--quiet"]],
    }
    for i, (args, commands) in enumerate(expected.items()):
        active = [("compute tpus queued-resources describe", "ACTIVE", 0)] if len(commands) == 2 else []
        fakes = strict(tmp_path / str(i), "gcloud", GCLOUD, *active)
        assert words(launch("tpu_vm.sh", *args, "--dry-run", path=fakes).stdout) == [["gcloud", *command] for command in commands]
        assert launch("tpu_vm.sh", *args, path=fakes).returncode == 0
        assert calls(fakes, "gcloud") == commands


def test_tpu_copies_the_working_tree(tmp_path):
    """The archive that is copied holds the repository, without what does not belong on a worker; it is gone afterwards."""
    fakes = stand_in(tmp_path / "bin", "gcloud", f'if [[ "$4" == scp ]]; then tar -tzf "$5" > "{tmp_path}/list"; fi\n')
    for name in (".venv/bin", "runs/a", ".git"):
        (house() / name).mkdir(parents=True, exist_ok=True)
        (house() / name / "file").touch()
    done = launch("tpu_vm.sh", "setup", *HERE, path=fakes, TMPDIR=tmp_path)
    for name in (".venv", "runs", ".git"):
        shutil.rmtree(house() / name)
    assert done.returncode == 0, done.stderr
    packed = (tmp_path / "list").read_text().splitlines()
    assert {"./configs/a b.py", "./launch/tpu_vm.sh"} <= set(packed) and not [p for p in packed if re.match(r"\./(\.venv|runs|\.git)", p)]
    assert not list(tmp_path.glob("*.tar.gz"))


def remote(printed):
    """-> the shell command that a worker gets."""
    return printed[-1].removeprefix("--command=")


def test_tpu_real_run_hands_over_the_same_words(tmp_path):
    """Not dry: gcloud gets the printed argument list, and a worker's shell splits the command into our words again."""
    fakes = strict(tmp_path / "bin", "gcloud", GCLOUD)
    args = ["run", *HERE]
    (printed,) = words(launch("tpu_vm.sh", *args, "--dry-run", "--", *TRAIN).stdout)
    done = launch("tpu_vm.sh", *args, "--", *TRAIN, path=fakes)
    assert done.returncode == 0, done.stderr
    assert calls(fakes, "gcloud") == [printed[1:]]
    # The worker: its home holds the repository, whose interpreter notes what it is given and exits with 7 once it may.
    home = tmp_path / "home"
    (home / "ssljax" / ".venv" / "bin").mkdir(parents=True)
    os.mkfifo(home / "may")
    may = os.open(home / "may", os.O_RDWR)
    stand_in(home / "ssljax" / ".venv" / "bin", "python", f'printf "%s\\n" "$@"; read -r < "{home}/may"; exit 7\n')
    (other,) = words(launch("tpu_vm.sh", *args, "--dry-run", "--", *TRAIN, "--shrink").stdout)
    (follow,) = words(launch("tpu_vm.sh", "logs", *HERE, "--dry-run").stdout)

    def worker(command, **more):
        return subprocess.run(["bash", "-c", remote(command)], cwd=home, capture_output=True, text=True, timeout=60, **more)

    assert worker(printed).returncode == 0
    assert worker(printed).returncode == 0  # sent once more, by gcloud after a broken connection: the run goes on, once
    assert worker(other).returncode == 3  # another run is not started beside it
    os.write(may, b"\n")
    done = worker(follow)
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines() == [*JAX, "--distributed", *TRAIN]
    os.close(may)
    (home / "ssljax" / "train.status").unlink()  # the machine was restarted
    assert worker(follow).returncode == 75


SAID = {
    "logs": "compute tpus tpu-vm ssh pod --zone=us-east5-b --worker=0",
    "all": "compute tpus tpu-vm ssh pod --zone=us-east5-b --worker=all",
}
NODE, QUEUED = "compute tpus tpu-vm describe", "compute tpus queued-resources describe"


def story(called):
    """Argument lists of gcloud -> what was done, in a word each."""
    names = {"tpu-vm describe": "state?", "queued-resources describe": "queue?", "tpu-vm scp": "copy"}
    out = []
    for args in called:
        name = " ".join(args[2:4])
        if name == "tpu-vm ssh":
            out.append("logs" if "--worker=0" in args else "run" if "ssljax.train" in args[-1] else "install")
        else:
            out.append(names.get(name, args[3]))
    return " ".join(out)


def test_tpu_goes_on_after_preemption(tmp_path):
    """Queued and spot: the connection breaks, then the TPU is taken, then a worker is told to stop; the run ends well."""
    fakes = strict(
        tmp_path / "bin", "gcloud", GCLOUD,
        (QUEUED, "WAITING_FOR_RESOURCES", 0), (QUEUED, "ACTIVE", 0),
        (SAID["logs"], "connection lost", 255), (NODE, "READY", 0),
        (SAID["logs"], "no such host", 1), (NODE, "STOPPING", 0), (NODE, "PREEMPTED", 0), (QUEUED, "ACTIVE", 0),
        (SAID["logs"], "", 75), (NODE, "READY", 0),
    )  # fmt: skip
    strict(fakes, "sleep", {"": (1, {}, [])})
    args = ["all", *POD, "--queued", "--spot", "--restarts", "3", "--", *TRAIN]
    done = launch("tpu_vm.sh", *args, path=fakes, TMPDIR=tmp_path)
    assert done.returncode == 0, done.stderr
    start = "copy install run logs"
    assert story(calls(fakes, "gcloud")) == (
        f"create queue? queue? {start} state? logs state? state? delete create queue? {start} state? run logs"
    )
    assert calls(fakes, "sleep") == [["30"], ["30"]]
    (fakes / "gcloud.called").unlink()
    strict(fakes, "gcloud", GCLOUD, (SAID["logs"], "", 75), (NODE, "READY", 0), (SAID["logs"], "", 75), (NODE, "READY", 0))
    args[0], args[args.index("3")] = "watch", "1"
    done = launch("tpu_vm.sh", *args, path=fakes, TMPDIR=tmp_path)
    assert done.returncode == 75 and "--restarts 1 are used up" in done.stderr
    assert story(calls(fakes, "gcloud")) == "logs state? run logs state?"


@pytest.mark.parametrize(
    "replies, code, told",
    [
        ([("compute tpus tpu-vm create", "no quota", 1)], 1, "create"),
        ([(SAID["logs"], "error: --config", 2)], 2, "create copy install run logs"),
        ([(SAID["logs"], "", 134), (NODE, "READY", 0)], 134, "create copy install run logs state?"),
        ([(SAID["all"], "pip", 1), (NODE, "READY", 0)], 1, "create copy install state?"),
        # No answer is no reason to delete anything.
        ([(SAID["logs"], "", 255), (NODE, "no network", 1), (NODE, "no network", 1)], 255, "create copy install run logs state? state?"),
        # Gone without a trace: there is nothing to delete.
        (
            [(SAID["logs"], "", 255), (NODE, "NOT_FOUND: pod", 1)],
            0,
            "create copy install run logs state? create copy install run logs",
        ),
    ],
)  # fmt: skip
def test_tpu_failures(tmp_path, replies, code, told):
    """What is a failure of the run, or a mistake, is not tried again."""
    fakes = strict(tmp_path / "bin", "gcloud", GCLOUD, *replies)
    strict(fakes, "sleep", {"": (1, {}, [])})
    done = launch("tpu_vm.sh", "all", *POD, "--restarts", "1", "--", *TRAIN, path=fakes, TMPDIR=tmp_path)
    assert (done.returncode, story(calls(fakes, "gcloud"))) == (code, told), done.stderr


# ---------------------------------------------------------------------------------------------------------------- SLURM
def test_slurm_submits_what_a_dry_run_prints(tmp_path):
    root, script = house(), str(house() / "launch" / "slurm.sbatch")
    fakes = strict(tmp_path / "bin", "sbatch", SBATCH)
    asked = {
        ("--nodes", "4"): ("--nodes=4 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 --time=24:00:00", "--cpus-per-task=8", []),
        ("--per", "node", "--gpus", "4", "--time", "2-0"): (
            "--nodes=1 --ntasks-per-node=1 --gpus-per-node=4 --cpus-per-task=32 --time=2-0",
            "--cpus-per-task=32",
            ["env", "JAX_LOCAL_DEVICE_IDS=0,1,2,3"],
        ),
        ("--gpus", "0", "--cpus", "3"): (
            "--nodes=1 --ntasks-per-node=1 --gpus-per-node=0 --cpus-per-task=3 --time=24:00:00", "--cpus-per-task=3", []
        ),
    }  # fmt: skip
    for args, (shape, cores, devices) in asked.items():
        submit, run = words(launch("slurm.sbatch", *args, "--dry-run", "--", *TRAIN, PYTHON="/opt/py thon", path=fakes).stdout)
        assert submit == ["sbatch", *shape.split(), f"--chdir={root}", script, "--", *TRAIN]
        assert run == [
            "srun", "--kill-on-bad-exit=0", f"--chdir={root}", cores, *devices, "/opt/py thon", *JAX, "--distributed", *TRAIN
        ]  # fmt: skip
        assert calls(fakes, "sbatch") == []
        assert launch("slurm.sbatch", *args, "--", *TRAIN, path=fakes, cwd=tmp_path).returncode == 0
        assert calls(fakes, "sbatch") == [submit[1:]]
        (fakes / "sbatch.called").unlink()


JOB = {"SLURM_JOB_ID": 42, "SLURM_JOB_NUM_NODES": 2, "PYTHON": "python"}


@pytest.mark.parametrize("code", [0, 1, 2, 75, 134, 137])
def test_slurm_requeues_after_exit_code_75_only(tmp_path, code):
    fakes = strict(tmp_path / "bin", "srun", SRUN, ("", "", code))
    strict(fakes, "scontrol", SCONTROL)
    strict(fakes, "scancel", {})
    done = launch("slurm.sbatch", "--", *TRAIN, path=fakes, **JOB, SLURM_NTASKS=16, SLURM_GPUS_ON_NODE=8, SLURM_CPUS_PER_TASK=6)
    assert done.returncode == code, done.stderr
    task = ["python", *JAX, "--distributed", *TRAIN]
    assert calls(fakes, "srun") == [["--kill-on-bad-exit=0", f"--chdir={house()}", "--cpus-per-task=6", *task]]
    assert calls(fakes, "scontrol") == ([["requeue", "42"]] if code == 75 else [])


def test_slurm_tasks_and_devices(tmp_path):
    """One task a node gets all its GPUs; what fits neither is refused before any task starts, as is another folder."""
    fakes = strict(tmp_path / "bin", "srun", SRUN)
    done = launch("slurm.sbatch", "--", *TRAIN, path=fakes, **JOB, SLURM_NTASKS=2, SLURM_GPUS_ON_NODE=4)
    assert done.returncode == 0 and calls(fakes, "srun")[0][2:4] == ["env", "JAX_LOCAL_DEVICE_IDS=0,1,2,3"]
    (fakes / "srun.called").unlink()
    done = launch("slurm.sbatch", "--", *TRAIN, path=fakes, **JOB, SLURM_NTASKS=4, SLURM_GPUS_ON_NODE=4)
    assert done.returncode == 2 and "2 tasks a node for 4 GPUs: expected one a GPU" in done.stderr
    done = launch("slurm.sbatch", "--nodes", "2", "--", *TRAIN, path=fakes, **JOB)
    assert done.returncode == 2 and "--nodes: inside a job" in done.stderr
    done = launch("slurm.sbatch", "--", *TRAIN, path=fakes, cwd=tmp_path, **JOB)
    assert done.returncode == 2 and "is not the repository" in done.stderr
    assert calls(fakes, "srun") == []


def test_slurm_warning_before_the_time_limit(tmp_path):
    """srun warns its parent, the batch script, as SLURM would, twice; and ends as its tasks do when they are told to, once."""
    fakes, pid = tmp_path / "bin", tmp_path / "srun.pid"
    stand_in(fakes, "srun", f"echo $$ > '{pid}'\nparent=$PPID\n{UNTIL_TOLD.replace('9', '75')} \"kill -USR1 $parent\"\n")
    tell = f'echo "$*" >> "{tmp_path}/told"; kill -USR1 $PPID; kill -TERM "$(cat "{pid}")"\n'
    stand_in(fakes, "scancel", tell)
    strict(fakes, "scontrol", SCONTROL)
    done = launch("slurm.sbatch", "--", *TRAIN, path=fakes, **JOB)
    assert done.returncode == 75 and "saved" in done.stdout, done.stderr
    assert (tmp_path / "told").read_text() == "--signal=TERM 42\n"
    assert calls(fakes, "scontrol") == [["requeue", "42"]]


# ------------------------------------------------------------------------------------------------------------------ GKE
# The fields of JobSet v1alpha2, of a Job and of a pod that the manifests may use; "!": has to be there. A type, a list of such, the
# value itself, or a set of values.
VALUE = {"name!": str, "value": str, "valueFrom": {"fieldRef!": {"fieldPath!": str}}}
POD_SPEC = {
    "restartPolicy!": "Never",  # podFailurePolicy wants it
    "terminationGracePeriodSeconds!": int,
    "serviceAccountName": str,
    "nodeSelector!": {
        "cloud.google.com/gke-tpu-accelerator": {"tpu-v4-podslice", "tpu-v5-lite-podslice", "tpu-v5p-slice", "tpu-v6e-slice"},
        "cloud.google.com/gke-tpu-topology": str, "cloud.google.com/gke-accelerator": str, "cloud.google.com/gke-spot": "true",
    },
    "tolerations": [{"key!": str, "operator!": {"Equal", "Exists"}, "value": str, "effect!": "NoSchedule"}],
    "containers!": [{
        "name!": "train", "image!": str, "workingDir": str, "command!": [str], "args!": [str], "env": [VALUE],
        "resources!": {"limits!": {"google.com/tpu": int, "nvidia.com/gpu": int}},
        "volumeMounts": [{"name!": str, "mountPath!": str}],
    }],
    "volumes": [{"name!": str, "emptyDir": {"medium": "Memory"}, "persistentVolumeClaim": {"claimName!": str}}],
}  # fmt: skip
JOB_SPEC = {
    "completionMode!": "Indexed", "parallelism!": int, "completions!": int, "backoffLimit!": 0,
    "podFailurePolicy!": {"rules!": [{
        "action!": {"FailJob", "Ignore", "Count", "FailIndex"},
        "onExitCodes": {"containerName": "train", "operator!": {"In", "NotIn"}, "values!": [int]},
        "onPodConditions": [{"type!": str, "status!": "True"}],
    }]},
    "template!": {"spec!": POD_SPEC},
}  # fmt: skip
JOBSET = {
    "apiVersion!": "jobset.x-k8s.io/v1alpha2",
    "kind!": "JobSet",
    "metadata!": {"name!": str, "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}},
    "spec!": {
        "failurePolicy!": {"maxRestarts!": int, "rules!": [{
            "name": str, "action!": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}, "onJobFailureReasons": [str],
        }]},
        "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
        "replicatedJobs!": [{"name!": str, "replicas": int, "template!": {"spec!": JOB_SPEC}}],
    },
}  # fmt: skip


def hold(value, schema, at="manifest"):
    """AssertionError unless `value` is as the schema says."""
    if isinstance(schema, dict):
        known = {name.rstrip("!"): part for name, part in schema.items()}
        assert isinstance(value, dict), at
        assert set(value) <= set(known), f"{at}: unknown {set(value) - set(known)}"
        assert {name[:-1] for name in schema if name.endswith("!")} <= set(value), f"{at}: something is missing"
        for name, part in value.items():
            hold(part, known[name], f"{at}.{name}")
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, at
        for i, item in enumerate(value):
            hold(item, schema[0], f"{at}[{i}]")
    elif isinstance(schema, type):
        assert type(value) is schema, f"{at}: {value!r}"
    else:
        assert value in (schema if isinstance(schema, set) else {schema}), f"{at}: {value!r}"


def applied(fakes, *args):
    """-> (the manifest that kubectl gets, as text; its pods' spec), held to the schema."""
    done = launch("gke/submit.sh", "apply", *args, path=strict(fakes, "kubectl", KUBECTL))
    assert done.returncode == 0, done.stderr
    assert len(calls(fakes, "kubectl")) == 1
    text = json.loads((fakes / "kubectl.called").read_text())[1]
    (fakes / "kubectl.called").unlink()
    manifest = yaml.safe_load(text)
    hold(manifest, JOBSET)
    (workers,) = manifest["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    # Exit code 75 and a node that is taken fail the Job by its policy; for that reason the JobSet starts again, uncounted.
    conditions = [rule.get("onExitCodes") or rule["onPodConditions"] for rule in job["podFailurePolicy"]["rules"]]
    assert [rule["action"] for rule in job["podFailurePolicy"]["rules"]] == ["FailJob", "FailJob"]
    assert conditions == [{"containerName": "train", "operator": "In", "values": [75]}, [{"type": "DisruptionTarget", "status": "True"}]]
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("RestartJobSetAndIgnoreMaxRestarts", ["PodFailurePolicy"])
    assert job["parallelism"] == job["completions"]
    spec = job["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] >= 120
    assert {m["name"] for m in spec["containers"][0].get("volumeMounts", [])} == {v["name"] for v in spec.get("volumes", [])}
    return manifest, job, spec


def expanded(args):
    """What Kubernetes makes of arguments: $$ is $, and $(NAME) a variable's value."""
    return [re.sub(r"\$\$|\$\((\w+)\)", lambda m: "$" if m[0] == "$$" else f"<{m[1]}>", arg) for arg in args]


@pytest.mark.parametrize(
    "tpu, topology, nodes, chips",
    [
        ("tpu-v6e-slice", "4x4", 4, 4),
        ("tpu-v6e-slice", "2x4", 1, 8),
        ("tpu-v6e-slice", "2x4 --nodes 2", 2, 4),
        ("tpu-v5-lite-podslice", "1x1", 1, 1),
        ("tpu-v5p-slice", "2x2x2", 2, 4),
        ("tpu-v4-podslice", "4x4x8", 32, 4),
    ],
)
def test_gke_tpu_manifest(tmp_path, tpu, topology, nodes, chips):
    args = ["--name", "ssl", "--image", "place/ssljax:1", "--tpu", tpu, "--topology", *topology.split(), "--", *TRAIN]
    manifest, job, spec = applied(tmp_path / "bin", *args)
    (container,) = spec["containers"]
    assert (manifest["metadata"]["name"], container["image"]) == ("ssl", "place/ssljax:1")
    assert (job["completions"], container["resources"]["limits"]) == (nodes, {"google.com/tpu": chips})
    size = topology.split()[0]
    assert nodes * chips == functools.reduce(int.__mul__, map(int, size.split("x")))
    assert spec["nodeSelector"] == {"cloud.google.com/gke-tpu-accelerator": tpu, "cloud.google.com/gke-tpu-topology": size}
    assert container["command"] == ["python", *JAX, "--distributed"] and expanded(container["args"]) == TRAIN


def test_gke_gpu_manifest(tmp_path):
    """With everything that can be asked for, and arguments that look like placeholders, comments, quotes and variables."""
    odd = ["--config.a=${NAME} $(HOME) $$x $", '--config.b="q" \\ & # with --spot', "--config.c=\u00e9: {x}, - [y]"]
    train = [*TRAIN[:2], *odd, "--workdir", "/data/run"]
    args = ["--name", "ssl", "--image", "ssljax", "--gpu", "nvidia-h100-80gb", "--nodes", "3", "--gpus", "4", "--restarts", "9"]
    fakes = tmp_path / "bin"
    manifest, job, spec = applied(fakes, *args, "--spot", "--claim", "disk:/data", "--service-account", "trainer", "--", *train)
    (container,) = spec["containers"]
    assert expanded(container["args"]) == train and container["command"] == ["python", *JAX]
    assert (job["completions"], container["resources"]["limits"]) == (3, {"nvidia.com/gpu": 4})
    assert spec["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb", "cloud.google.com/gke-spot": "true"}
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 9 and spec["serviceAccountName"] == "trainer"
    env = {e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]}
    assert manifest["spec"]["network"]["enableDNSHostnames"] and env["SSLJAX_COORDINATOR"].startswith("ssl-workers-0-0.ssl:")
    assert (env["SSLJAX_NUM_PROCESSES"], env["JAX_LOCAL_DEVICE_IDS"]) == ("3", "0,1,2,3")
    assert "job-completion-index" in env["SSLJAX_PROCESS_ID"]["fieldRef"]["fieldPath"]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "disk"}} in spec["volumes"]
    assert {"name": "data", "mountPath": "/data"} in container["volumeMounts"]
    plain = applied(fakes, *args, "--", *TRAIN)[2]
    assert len(plain["volumes"]) == 1 and "cloud.google.com/gke-spot" not in json.dumps(plain)


def test_gke_dry_run_is_a_script_that_does_the_same(tmp_path):
    args = [*SLICE, "--namespace", "team", "--context", "a b"]
    really, printed = strict(tmp_path / "really", "kubectl", KUBECTL), strict(tmp_path / "printed", "kubectl", KUBECTL)
    done = launch("gke/submit.sh", "all", *args, "--dry-run", *GOOD, path=printed)
    assert done.returncode == 0 and not calls(printed, "kubectl"), done.stderr
    assert launch("gke/submit.sh", "apply", *args, *GOOD, path=really).returncode == 0
    env = {**os.environ, "PATH": f"{printed}:{os.environ['PATH']}"}
    assert subprocess.run(["bash", "-eu"], input=done.stdout, env=env, text=True, timeout=60).returncode == 0
    lines = (printed / "kubectl.called").read_text().splitlines()
    assert lines[0] == (really / "kubectl.called").read_text().strip()
    apply, pods, state = calls(printed, "kubectl")
    assert apply == ["--context=a b", "--namespace=team", "apply", "--filename=-"]
    assert pods[:4] == [*apply[:2], "get", "pods"] and state[2:4] == ["get", "jobset/n"]
    delete = ["delete", "--name", "n", "--namespace", "team"]
    assert words(launch("gke/submit.sh", *delete, "--dry-run").stdout) == [
        ["kubectl", "--namespace=team", "delete", "jobset/n", "--ignore-not-found"]
    ]
    fakes = strict(tmp_path / "delete", "kubectl", KUBECTL)
    assert launch("gke/submit.sh", *delete, path=fakes).returncode == 0 and len(calls(fakes, "kubectl")) == 1


@pytest.mark.parametrize("end, code", [("Completed", 0), ("Failed", 1)])
def test_gke_logs_follow_the_pods_of_restarts(tmp_path, end, code):
    pods, state = "get pods", "get jobset/n"
    fakes = strict(
        tmp_path / "bin", "kubectl", KUBECTL,
        (pods, "", 0), (state, "", 0),
        (pods, "a=Pending", 0), (state, "", 0),
        (pods, "a=Running", 0), ("logs --follow pod/a", "step 1", 0), (state, "StartupPolicyCompleted", 0),
        (pods, "a=Failed\nb=Running", 0), ("logs --follow pod/b", "broken", 1), (state, "", 0),
        (pods, "a=Failed\nb=Running", 0), ("logs --follow --since=10s pod/b", "step 2", 0), (state, f"StartupPolicyCompleted {end}", 0),
    )  # fmt: skip
    strict(fakes, "sleep", {"": (1, {}, [])})
    done = launch("gke/submit.sh", "logs", "--name", "n", path=fakes)
    assert done.returncode == code and done.stdout.splitlines() == ["step 1", "step 2"], done.stderr
    called = calls(fakes, "kubectl")
    assert " ".join(args[1].split("/")[0] if args[0] == "get" else "logs" for args in called) == (
        "pods jobset pods jobset pods logs jobset pods logs jobset pods logs jobset"
    )
    assert "--selector=jobset.sigs.k8s.io/jobset-name=n,batch.kubernetes.io/job-completion-index=0" in called[0]
    assert len(calls(fakes, "sleep")) == 4


def test_gke_templates_and_what_the_schema_refuses():
    """The templates are YAML themselves; a field that JobSet does not have, lacks, or of another type is noticed."""
    for name in ("tpu.yaml", "gpu.yaml"):
        template = yaml.safe_load((LAUNCH / "gke" / name).read_text())
        assert template["kind"] == "JobSet" and template["metadata"]["name"] == "${NAME}"
    with pytest.raises(AssertionError, match="maxRestarts"):  # not filled in
        hold(template, JOBSET)
    good = {"name": "x", "action": "RestartJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    schema = JOBSET["spec!"]["failurePolicy!"]["rules!"]
    hold([good], schema)
    for bad in ({**good, "reasons": []}, {"name": "x"}, {**good, "action": "Restart"}, {**good, "onJobFailureReasons": "PodFailurePolicy"}):
        with pytest.raises(AssertionError):
            hold([bad], schema)


def test_gke_image_holds_what_the_manifest_runs():
    lines = (LAUNCH / "gke" / "Dockerfile").read_text().splitlines()
    sources = [line.split()[1] for line in lines if line.startswith("COPY")]
    assert sources == ["requirements.txt", "ssljax", "configs"] and all((LAUNCH.parent / source).exists() for source in sources)
    assert "WORKDIR /ssljax" in lines


# ------------------------------------------------------------------------------------------------------ local processes
def test_local_dry_run():
    python = {"PYTHON": "python", "XLA_FLAGS": "--xla_foo=1"}
    done = launch("local_multiprocess.sh", "--dry-run", "2", "3", "--", *TRAIN, **python)
    commands = words(done.stdout)
    assert len(commands) == 2, done.stderr
    for process, command in enumerate(commands):
        assert command[0] == "env" and command[-3 - len(TRAIN) :] == ["python", "-m", "ssljax.train", *TRAIN]
        assert {
            "SSLJAX_COORDINATOR=localhost:PORT", "SSLJAX_NUM_PROCESSES=2", f"SSLJAX_PROCESS_ID={process}",
            "XLA_FLAGS=--xla_foo=1 --xla_force_host_platform_device_count=3", "JAX_PLATFORMS=cpu",
        } <= set(command)  # fmt: skip
    default = launch("local_multiprocess.sh", "--dry-run", "1", "--", *TRAIN)
    assert "device_count=4" in default.stdout


FAKE_PYTHON = """
if [[ "$1" == -c ]]; then echo 12345; exit; fi
echo "process $SSLJAX_PROCESS_ID at $SSLJAX_COORDINATOR: $*"
"""


def test_local_success_shows_process_zero(tmp_path):
    fakes = stand_in(tmp_path / "bin", "python", FAKE_PYTHON)
    done = launch("local_multiprocess.sh", "3", "--", *CONFIG, "--workdir", "a b", PYTHON=fakes / "python")
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout == "process 0 at localhost:12345: -m ssljax.train --config configs/a b.py:batch=8 --workdir a b\n" and not done.stderr
    )


def test_local_failure_ends_all(tmp_path):
    """Process 1 fails; 0 and 2 would go on for an hour, deaf to SIGTERM, as a process inside a collective may be."""
    deaf = "trap '' TERM\nexec sleep 3600\n"
    script = FAKE_PYTHON + 'if [[ "$SSLJAX_PROCESS_ID" == 1 ]]; then echo "out of luck" >&2; exit 3; fi\n' + deaf
    fakes = stand_in(tmp_path / "bin", "python", script)
    done = launch("local_multiprocess.sh", "3", "--", *TRAIN, PYTHON=fakes / "python")
    assert done.returncode == 3
    assert "out of luck" in done.stderr and "process 1 ended first, with exit code 3" in done.stderr


def test_local_passes_sigterm_on(tmp_path):
    """Every process gets it, ends by itself, and the exit code tells."""
    ready = tmp_path / "ready"
    zero = f'{UNTIL_TOLD} "touch {ready}"\n'
    one = f'{UNTIL_TOLD} "until test -e {ready}; do :; done; kill -TERM $PPID"\n'
    script = f'{FAKE_PYTHON}if [[ "$SSLJAX_PROCESS_ID" == 0 ]]; then {zero}else {one}fi\n'
    fakes = stand_in(tmp_path / "bin", "python", script)
    done = launch("local_multiprocess.sh", "2", "--", *TRAIN, PYTHON=fakes / "python")
    assert done.returncode == 9
    assert "saved 0" in done.stdout and "saved 1" in done.stderr


def test_local_stopped_processes_are_left_to_save(tmp_path):
    """Process 1 has saved first, with exit code 75; process 0 does so only when the script has taken notice of that."""
    pid = tmp_path / "pid"
    zero = f"until [[ -s {pid} ]]; do :; done; until [[ ! -e /proc/$(<{pid}) ]]; do :; done\nexec {sys.executable} -S -c "
    zero += """'print("saved 0"); raise SystemExit(75)'\n"""
    script = f'{FAKE_PYTHON}if [[ "$SSLJAX_PROCESS_ID" == 1 ]]; then echo $$ > {pid}; exit 75; fi\n{zero}'
    fakes = stand_in(tmp_path / "bin", "python", script)
    done = launch("local_multiprocess.sh", "2", "--", *TRAIN, PYTHON=fakes / "python")
    assert done.returncode == 75 and "saved 0" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    "codes, restarts, code",
    [
        ([137, 0], 2, 0),  # killed
        ([3, 1], 1, 1),  # failed, as often as it may
        ([75, 75, 0], 5, 0),  # told to stop, not by way of the script
        ([2], 5, 2),  # a mistake stays one
        ([75], 0, 75),
    ],
)
def test_local_restarts(tmp_path, codes, restarts, code):
    """Process 1 ends with these codes, one a start; 0 ends as it does, or goes on for an hour if that one fails."""
    script = (
        f"{FAKE_PYTHON}echo $SSLJAX_PROCESS_ID >> '{tmp_path}/starts'\n"
        f"code=$(sed -n \"$(($(grep -c $SSLJAX_PROCESS_ID '{tmp_path}/starts')))p\" '{tmp_path}/codes')\n"
        '[[ "$SSLJAX_PROCESS_ID" == 1 || "$code" == 0 || "$code" == 75 ]] || exec sleep 3600\n'
        'if [[ "$code" == 137 ]]; then kill -KILL $$; fi; exit "$code"\n'
    )
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    fakes = stand_in(tmp_path / "bin", "python", script)
    done = launch("local_multiprocess.sh", "2", "--restarts", str(restarts), "--", *TRAIN, PYTHON=fakes / "python")
    assert done.returncode == code, done.stderr
    assert sorted((tmp_path / "starts").read_text().split()) == ["0"] * len(codes) + ["1"] * len(codes)
    assert done.stderr.count("starting all again") == len(codes) - 1
