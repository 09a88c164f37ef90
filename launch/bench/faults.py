"""What a run survives: killed at random moments, told to stop, moved to other hosts, its files damaged, its disk filled, a peer lost.

    python launch/bench/faults.py                 # 20 kills; about 25 minutes on two CPU cores
    python launch/bench/faults.py --quick --method moco   # what continuous integration runs: a kill in a save, SIGTERM, a flipped byte
    python launch/bench/faults.py --only kills,sigterm --kills 5 --seed 3 --json
    python launch/bench/faults.py --only hosts --method moco --hosts 2,4    # (processes.py does so for every method, in less time)

Runs are real: processes on this machine with fake devices, started by launch/local_multiprocess.sh, a shrunk config of a method with
state that is easy to forget (--method dino: teacher, centre, batch statistics, schedules). Each row says what should hold and whether it
did; the exit code is 1 if a row fell short. Nothing outside a scratch folder and --out is written.
"""

import dataclasses
import functools
import json
import os
import pathlib
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launch.bench.rows import commit, keep, markdown  # noqa: E402
from ssljax import cli, faults  # noqa: E402
from ssljax import config as configs  # noqa: E402
from ssljax.errors import Preempted, UserError  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_bool("quick", False, "the subset for continuous integration", flag_values=FLAGS)
flags.DEFINE_integer("kills", 20, "times that the run is killed", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of the moments to kill at", flag_values=FLAGS)
flags.DEFINE_list("method", ["dino"], "the method whose small config is run, several, or all", flag_values=FLAGS)
flags.DEFINE_list("hosts", ["2", "1", "4", "2"], "processes of the starts of hosts; all but the last are told to stop", flag_values=FLAGS)
flags.DEFINE_list("only", [], "scenarios to run, of those that --help lists; default: all", flag_values=FLAGS)
flags.DEFINE_string("out", str(ROOT / "launch/bench/results/faults.jsonl"), "rows are appended here", flag_values=FLAGS)
flags.DEFINE_bool("json", False, "end with one JSON line of the whole table", flag_values=FLAGS)

LIMIT = 600  # seconds that a start may take, whatever befalls it
EVERY = 2  # steps between checkpoints
MISSED = "Gloo context initialization failed"  # what XLA's gloo says then, see `Bench.missed`
# Programs that run for milliseconds are compiled soon: LLVM's level 0, each program in one piece, and fusions by the older emitters, which
# halves what is left; XLA's own passes all run. The tests are compiled so as well.
SOON = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


@functools.cache
def small_configs():
    """{method: path of its first small config, which states LEARNING}."""
    found = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        if "LEARNING" in path.read_text():
            found.setdefault(configs.load(path).method.name, path)
    return found


def get_config(arg=""):
    """What every run here trains: `--config launch/bench/faults.py:method=dino,steps=40`."""
    a = configs.parse(arg, method="dino", steps=40)
    config = configs.shrink(configs.load(small_configs()[a.method]))
    config = configs.with_steps(config, a.steps)
    config.checkpoint.update(every=EVERY, keep=3)
    return config


def without_colours(config):
    """A third of the time to compile is the colours', which the step of every method shares."""
    for group in config.augment.values():
        group.update(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.0, blur=(0.0,), solarize=(0.0,))
    return config


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


# ------------------------------------------------------------------------------------------------------------------- a start
@dataclasses.dataclass
class Bench:
    """What the scenarios share. whole: {"params": SHA-256, ...} of the run that nothing befell."""

    scratch: pathlib.Path
    method: str
    steps: int
    kills: int
    hosts: list
    random: random.Random
    whole: dict = dataclasses.field(default_factory=dict)
    state: dict = dataclasses.field(default_factory=dict)
    begun: dict = dataclasses.field(default_factory=dict)  # log -> bytes in it when its latest start began

    def words(self, workdir, *more):
        return ["--config", f"launch/bench/faults.py:method={self.method},steps={self.steps}", "--workdir", str(workdir), *more]

    def start(self, workdir, *more, processes=2, restarts=0):
        """The launch script, in a session of its own so that all of it can be killed. 8 devices, over `processes`."""
        script = ["bash", "launch/local_multiprocess.sh", "--restarts", str(restarts), str(processes), str(8 // processes)]
        return self.popen([*script, "--", *self.words(workdir, *more)], workdir)

    def popen(self, command, workdir):
        # Programs are compiled soon, and once for all starts. Unbuffered, because scenarios wait for what is printed.
        env = {**os.environ, "PYTHON": sys.executable, "XLA_FLAGS": SOON, "PYTHONUNBUFFERED": "1"}
        env |= {"JAX_COMPILATION_CACHE_DIR": str(self.scratch / "compiled")}
        with self.log(workdir).open("ab") as log:
            self.begun[self.log(workdir)] = log.tell()
            return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)

    def log(self, workdir):
        return self.scratch / f"{pathlib.Path(workdir).name}.log"

    def said(self, workdir):
        """What the latest start in this workdir has printed."""
        return self.log(workdir).read_bytes()[self.begun[self.log(workdir)] :].decode(errors="replace")

    def finish(self, workdir, *more, processes=2):
        """A start that nothing befalls -> its exit code."""
        for _ in range(3):
            code = wait(self.start(workdir, *more, processes=processes))
            if not self.missed(workdir):
                break
        return code

    def running(self, workdir, steps, **how):
        """A start that has logged so many steps more, still running."""
        for _ in range(3):
            begin, process = steps_logged(workdir), self.start(workdir, **how)
            if until(lambda begin=begin: steps_logged(workdir) >= begin + steps, process):
                return process
            wait(process)
            hold(self.missed(workdir), f"no steps: {self.said(workdir)[-2000:]}")
        raise FellShort("three starts in a row whose processes did not meet")

    def missed(self, workdir):
        """Whether the processes of the latest start missed each other: XLA's gloo gives them 30 s to meet in a collective, too few where
        one compiles for longer than the other on a busy machine. Whoever starts it again goes on, and so does this program."""
        return MISSED in self.said(workdir)

    def copy(self, name):
        """The whole run's workdir under another name."""
        shutil.copytree(self.scratch / "whole", self.scratch / name)
        return self.scratch / name


def wait(process, limit=LIMIT):
    """Its exit code; a process that outlasts the limit is killed with all it started, and None."""
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        kill(process)
        return None


def kill(process):
    """SIGKILL to the launch script and all it started: the machine is gone."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def until(condition, process, limit=LIMIT):
    """Looks every few milliseconds -> whether `condition()` came true while the process ran."""
    end = time.monotonic() + limit
    while time.monotonic() < end and process.poll() is None:
        if condition():
            return True
        time.sleep(0.002)
    return False


def steps_logged(workdir):
    path = workdir / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def saving(workdir, since):
    """Whether a step's directory was made after `since` (time.time()) and is not committed yet."""
    folder = workdir / "checkpoints"
    steps = folder.glob("[0-9]*") if folder.is_dir() else ()
    try:
        return any(not (step / "commit_success.txt").exists() and step.stat().st_mtime >= since for step in steps)
    except FileNotFoundError:  # a step deleted between the two looks
        return False


def read(workdir, step=None):
    """The stored state -> {"params": tree, "extra": tree, "opt": tree, ...} of numpy arrays, verified."""
    from ssljax.checkpoint import Checkpoints

    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    tree = {}
    for name, leaf in checkpoints.shapes(step).items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return checkpoints.restore(tree, step)


def digests(state):
    from ssljax import trees

    return {part: trees.sha256(state[part]) for part in ("params", "opt", "extra")}


def steps_of(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*") if (p / "commit_success.txt").exists())


def largest_file(workdir, step):
    """The data file that holds most of a step."""
    files = [p for p in (workdir / "checkpoints" / str(step) / "state").rglob("*") if p.is_file() and p.parent.name == "d"]
    return max(files, key=lambda p: p.stat().st_size)


class FellShort(Exception):
    """What should hold does not."""


def hold(true, otherwise):
    if not true:
        raise FellShort(otherwise)


def same_end(bench, workdir):
    got = digests(read(workdir, bench.steps))
    differ = [part for part in got if got[part] != bench.whole[part]]
    hold(not differ, f"SHA-256 of {', '.join(differ)} at step {bench.steps} is not the uninterrupted run's")
    return f"SHA-256 of params, opt and extra equal at step {bench.steps}"


def distance(want, got):
    """The largest difference of two trees' leaves."""
    from ssljax import trees

    want, got = dict(trees.names(want)), dict(trees.names(got))
    hold(want.keys() == got.keys(), f"leaves that only one has: {sorted(want.keys() ^ got.keys())}")
    each = [np.abs(np.asarray(want[name], np.float64) - np.asarray(got[name], np.float64)).max(initial=0) for name in want]
    return float(max(each, default=0.0))


def losses_apart(steps, *workdirs):
    """The largest difference of two runs' losses, at each of `steps`."""
    from ssljax import metrics

    one, other = ([row["loss"] for row in metrics.read(workdir) if "loss" in row] for workdir in workdirs)
    hold(len(one) == len(other) == steps, f"{len(one)} and {len(other)} losses of {steps} steps")
    return float(np.abs(np.subtract(one, other)).max())


def judged(workdir):
    """The numbers of the run's last evaluation, all finite."""
    from ssljax import metrics

    rows = metrics.read(workdir)
    found = [{k: v for k, v in row.items() if k not in ("step", "time")} for row in rows if "rankme" in row or "loss" not in row]
    hold(found and all(np.isfinite(v) for v in found[-1].values()), f"the evaluation at the end: {found}")
    return found[-1]


# ----------------------------------------------------------------------------------------------------------------- scenarios
def whole(bench):
    """the run that nothing befalls ends, and every kept step verifies"""
    workdir = bench.scratch / "whole"
    code = bench.finish(workdir)
    hold(code == 0, f"exit code {code}: {bench.said(workdir)[-2000:]}")
    bench.state = read(workdir, bench.steps)
    bench.whole = digests(bench.state)
    return f"{bench.steps} steps, params {bench.whole['params'][:12]}"


def kills(bench):
    """killed -9 at random moments, some during a save: every restart goes on, and ends with the same bits"""
    workdir, done, during, starts, lost = bench.scratch / "kills", 0, 0, 0, 0
    resumed = 0
    while done < bench.kills and starts < 2 * bench.kills:
        starts, since = starts + 1, time.time()
        process = bench.start(workdir)
        until(lambda: "compiling the train step" in bench.said(workdir), process)
        resumed += "resumed at step" in bench.said(workdir)
        before, begin, kind = steps_of(workdir)[-1:], steps_logged(workdir), done % 4
        committed = lambda before=before: steps_of(workdir)[-1:] > before  # noqa: E731
        if kind == 0:  # in the save after the first of this start
            until(lambda since=since, committed=committed: committed() and saving(workdir, since), process)
        elif kind == 1:  # some steps after one, out of step with the loop
            enough = begin + EVERY + bench.random.randint(1, EVERY)
            until(lambda enough=enough: steps_logged(workdir) >= enough, process)
            time.sleep(bench.random.uniform(0, 0.2))
        elif kind == 2:  # in the first save
            until(lambda since=since: saving(workdir, since), process)
        else:  # anywhere: compiling, the first step
            time.sleep(bench.random.uniform(0, 5))
        if process.poll() is not None and bench.missed(workdir):
            lost += 1  # a kill as well
            continue
        if process.poll() is not None:
            hold(process.returncode == 0, f"start {starts} ended with {process.returncode}: {bench.said(workdir)[-2000:]}")
            break  # it was through before the kill
        kill(process)
        during += saving(workdir, since)
        done += 1
    code = bench.finish(workdir)
    hold(code == 0, f"the last start ended with {code}: {bench.said(workdir)[-2000:]}")
    end = same_end(bench, workdir)
    resumed += "resumed at step" in bench.said(workdir)
    hold(done == bench.kills, f"only {done} of {bench.kills} kills fitted into the run; {end}")
    hold(resumed, "no start found a checkpoint: the kills came too early to show anything")
    counts = f"{done} kills survived, {during} of them with a save under way, {resumed} starts resumed from a checkpoint"
    return f"{counts}{f', {lost} lost to gloo' if lost else ''}; {end}"


def sigterm(bench):
    """SIGTERM to one of the processes: all save at the same step and exit with 75; the next start ends with the same bits"""
    workdir = bench.scratch / "sigterm"
    process = bench.running(workdir, 2)
    try:
        with faults.lock(workdir):
            hold(False, "a second run could take the workdir")
    except UserError as error:
        hold(f"on {socket.gethostname()}" in str(error) and "process " in str(error), f"the lock does not name its owner: {error}")
    os.kill(worker(process, 1), signal.SIGTERM)
    code = wait(process)
    hold(code == Preempted.CODE, f"exit code {code}, not {Preempted.CODE}: {bench.said(workdir)[-2000:]}")
    at = steps_of(workdir)[-1]
    hold(at < bench.steps and f"at step {at} of" in bench.said(workdir), f"saved {at}, said otherwise: {bench.said(workdir)[-1000:]}")
    hold(bench.finish(workdir) == 0, f"the next start: {bench.said(workdir)[-2000:]}")
    return f"saved step {at}, exit code {code}; {same_end(bench, workdir)}"


def hosts(bench):
    """other numbers of hosts at every start, the last evaluates: identical order of examples, parameters within 1e-6 of the whole run's"""
    from ssljax.data import pipeline, sources

    workdir = bench.scratch / "hosts"
    *told, last = bench.hosts
    for processes in told:
        process = bench.running(workdir, 4, processes=processes)  # far from the end: a small run is through soon after
        process.send_signal(signal.SIGTERM)
        code = wait(process)
        hold(code == Preempted.CODE, f"{processes} processes: exit code {code}: {bench.said(workdir)[-2000:]}")
    code = bench.finish(workdir, f"--config.evals.every={bench.steps}", processes=last)
    hold(code == 0, f"the last start: {bench.said(workdir)[-2000:]}")
    judged(workdir)
    apart = distance(bench.state["params"], read(workdir, bench.steps)["params"])
    hold(apart <= 1e-6, f"parameters are {apart:.1e} apart")
    loss_apart = losses_apart(bench.steps, bench.scratch / "whole", workdir)

    config = get_config(f"method={bench.method},steps={bench.steps}")
    source = sources.open(config.data.source, config.data.train)
    options = dict(batch=config.batch, seed=config.seed, crop=config.data.crop, image_size=config.data.image_size)
    options["views"] = {name: group.to_dict() for name, group in config.augment.items()}

    def ids(index, count):
        feed = pipeline.train_batches(source, start_step=0, process_index=index, process_count=count, **options)
        return [next(feed)["id"] for _ in range(bench.steps)]

    two = [np.concatenate(parts) for parts in zip(ids(0, 2), ids(1, 2), strict=True)]
    hold(all(np.array_equal(a, b) for a, b in zip(ids(0, 1), two, strict=True)), "the order of examples differs")
    same = f"{bench.steps} batches of the same ids in the same order"
    return f"{'-'.join(map(str, bench.hosts))} processes: parameters within {apart:.1e}, losses within {loss_apart:.1e}, {same}"


def damaged(bench, name, damage):
    """The whole run's last step, damaged: a start names file and step, goes back to the step before and ends with the same bits."""
    workdir = bench.copy(name)
    before, last = steps_of(workdir)[-2:]
    file = damage(largest_file(workdir, last))
    hold(bench.finish(workdir) == 0, f"the start: {bench.said(workdir)[-2000:]}")
    lines = [line for line in bench.said(workdir).splitlines() if "is damaged" in line]
    hold(len(lines) == 1, f"{len(lines)} lines of warning")
    hold(file in lines[0] and f"/{last} is" in lines[0] and f"step {before}" in lines[0], f"the line does not name it: {lines[0]}")
    return f"step {last} passed over, resumed at {before}; {same_end(bench, workdir)}"


def flipped(bench):
    """one byte of the newest step flipped: named, fallen back from, replaced"""

    def flip(path):
        data = bytearray(path.read_bytes())
        data[bench.random.randrange(len(data))] ^= 1
        path.write_bytes(data)
        return path.name

    return damaged(bench, "flipped", flip)


def truncated(bench):
    """a file of the newest step cut short, and an empty directory named as a later step: named, fallen back from, replaced"""

    def cut(path):
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        (path.parents[3] if path.parents[1].name == "state" else path.parents[4]).joinpath(str(bench.steps + 1)).mkdir()
        return path.name

    return damaged(bench, "truncated", cut)


def full(bench):
    """the disk fills up: exit code 2, earlier steps as they were; with room again the same bits"""
    workdir = bench.scratch / "full"
    workdir.mkdir()
    folder = bench.scratch / "whole" / "checkpoints" / str(bench.steps)
    size = sum(-(-p.stat().st_size // 4096) * 4096 + 4096 for p in folder.rglob("*"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(2.5 * size)}", "tmpfs", str(workdir)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        return f"skipped: this user may not mount a tmpfs here ({' '.join(done.stderr.split())[:80]})"
    try:
        code = bench.finish(workdir)
        said = bench.said(workdir)
        hold(code == 2 and "error: " in said, f"exit code {code}: {said[-2000:]}")
        line = next(line for line in said.splitlines() if line.startswith("error: "))
        hold("No space left" in line and str(workdir) in line, f"the message: {line}")
        kept = steps_of(workdir)
        hold(kept, "no earlier checkpoint is left")
        for step in kept:
            read(workdir, step)
        subprocess.run(["mount", "-o", f"remount,size={20 * size}", str(workdir)], check=True)
        hold(bench.finish(workdir) == 0, f"with room again: {bench.said(workdir)[-2000:]}")
        return f"exit code 2, steps {kept} verify; {same_end(bench, workdir)}"
    finally:
        subprocess.run(["umount", str(workdir)], capture_output=True)


def peer(bench):
    """one of two processes killed, no script to end the other: it ends within the timeout, and says who and in which phase"""
    timeout, workdir = 10, bench.scratch / "peer"
    command = ["bash", "launch/local_multiprocess.sh", "--dry-run", "2", "4", "--", *bench.words(workdir, f"--peer_timeout={timeout}")]
    env = {**os.environ, "PYTHON": sys.executable, "XLA_FLAGS": SOON}
    printed = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    port = free_port()
    each = [[word.replace("localhost:PORT", f"localhost:{port}") for word in shlex.split(line)] for line in printed.splitlines()]
    processes = [bench.popen(words, workdir) for words in each]
    try:
        hold(until(lambda: steps_logged(workdir) >= 2, processes[0]), f"no steps: {bench.said(workdir)[-2000:]}")
        killed = time.monotonic()
        kill(processes[1])
        code = wait(processes[0], 6 * timeout)
        seconds = time.monotonic() - killed
        said = bench.said(workdir)
        hold(code is not None, f"the other still ran after {seconds:.0f} s")
        hold(code != 0 and seconds <= 2 * timeout + 5, f"the other ended with {code} after {seconds:.0f} s")
        named = [line for line in said.splitlines() if "process 1" in line or "task:1" in line]
        hold(named, f"nobody names process 1: {said[-2000:]}")
        return f"ended after {seconds:.0f} s (timeout {timeout}), exit code {code}: {named[0][:160]}"
    finally:
        for process in processes:
            kill(process)


def four(bench):
    """one of four processes killed: all end, the launcher starts them again, and the end is that of four that nothing befell"""
    quiet, workdir = bench.scratch / "four_whole", bench.scratch / "four"
    hold(bench.finish(quiet, processes=4) == 0, f"the whole run: {bench.said(quiet)[-2000:]}")
    launcher = bench.running(workdir, bench.steps // 2, processes=4, restarts=3)
    killed = time.monotonic()
    os.kill(worker(launcher, 2), signal.SIGKILL)
    hold(until(lambda: "starting all again" in bench.said(workdir), launcher), f"no new start: {bench.said(workdir)[-2000:]}")
    seconds = time.monotonic() - killed
    said = bench.said(workdir)
    hold("process 2 ended first, with exit code 137; all were ended" in said, f"process 2 is not named: {said[-2000:]}")
    code = wait(launcher)
    hold(code == 0, f"exit code {code}: {bench.said(workdir)[-2000:]}")
    got, want = (digests(read(path, bench.steps)) for path in (workdir, quiet))
    differ = [part for part in got if got[part] != want[part]]
    hold(not differ, f"SHA-256 of {', '.join(differ)} is not that of the uninterrupted run of four")
    return f"all ended after {seconds:.1f} s and started again; SHA-256 of params, opt and extra equal at step {bench.steps}"


def worker(launcher, number):
    """The operating system's id of process `number` of a launch script."""
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == launcher.pid and f"SSLJAX_PROCESS_ID={number}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    raise FellShort(f"process {number} is not there")


SCENARIOS = (whole, kills, sigterm, hosts, flipped, truncated, full, peer, four)


# ---------------------------------------------------------------------------------------------------------------------- main
def table(rows):
    columns = ("method", "fault", "should", "outcome", "detail", "seconds")
    return markdown(columns, [[str(row[column]) for column in columns] for row in rows])


def main(argv):
    names = [scenario.__name__ for scenario in SCENARIOS]
    cli.parse(argv, FLAGS, f"{__doc__}\nscenarios: {', '.join(names)} (whole is always run)")
    unknown = [name for name in FLAGS.only if name not in names]
    if unknown:
        raise UserError(f"--only={','.join(FLAGS.only)}: no scenario {unknown[0]!r}; there are {', '.join(names)}")
    os.environ["JAX_PLATFORMS"] = "cpu"
    count = min(FLAGS.kills, 1) if FLAGS.quick else FLAGS.kills
    quick = {"whole", "kills", "sigterm", "flipped"}
    methods = sorted(small_configs()) if FLAGS.method == ["all"] else FLAGS.method
    if unknown := sorted(set(methods) - set(small_configs())):
        raise UserError(f"--method={unknown[0]}: expected all, or some of {', '.join(sorted(small_configs()))}")
    if not FLAGS.hosts or set(FLAGS.hosts) - {"1", "2", "4", "8"}:
        raise UserError(f"--hosts={','.join(FLAGS.hosts)}: expected numbers of processes that eight devices are shared by: 1, 2, 4 or 8")
    hosts = [int(n) for n in FLAGS.hosts]
    rows = []
    for method in methods:
        rows += run(method, names, quick, count, hosts)
    print(table(rows))
    if FLAGS.json:
        print(json.dumps(rows))
    if any(row["outcome"] == "fell short" for row in rows):
        sys.exit(1)


def run(method, names, quick, count, hosts):
    """Rows of one method's scenarios, kept as they come."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        chosen = {"whole", *(FLAGS.only or (quick if FLAGS.quick else names))}
        # Of these each start takes some: a kill comes three steps on, what is told to stop takes four and those until all have heard.
        steps = 4 * EVERY + max(3 * count if "kills" in chosen else 3, 8 * len(hosts[:-1]) if "hosts" in chosen else 0)
        bench = Bench(pathlib.Path(scratch), method, steps, count, hosts, random.Random(FLAGS.seed))
        for scenario in SCENARIOS:
            name = scenario.__name__
            if name not in chosen:
                continue
            started = time.monotonic()
            try:
                detail = scenario(bench)
                outcome = "skipped" if detail.startswith("skipped: ") else "holds"
            except (FellShort, UserError, OSError) as error:
                outcome, detail = "fell short", f"{error}"
            row = {"fault": name, "should": scenario.__doc__, "outcome": outcome, "detail": " ".join(detail.split())}
            row |= {"seconds": round(time.monotonic() - started, 1), "method": method, "seed": FLAGS.seed, "quick": FLAGS.quick}
            rows.append({**row, "commit": commit()})
            keep(rows[-1:], FLAGS.out)
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            if name == "whole" and outcome != "holds":
                break  # nothing to compare with
    return rows


if __name__ == "__main__":
    cli.command(main)
