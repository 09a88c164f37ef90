"""What may befall a run: a signal, another run in its workdir, a step or a peer that hangs, a loss that is not finite."""

import collections
import contextlib
import fcntl
import json
import math
import os
import pathlib
import re
import signal
import socket
import statistics
import sys
import threading
import time

from ssljax.errors import UserError


def _client():
    """What JAX's processes talk to each other through, without a device; None in a run of one process that met no others."""
    from jax._src import distributed  # JAX has no public name for it (Orbax takes it from here as well)

    return distributed.global_state.client


BOARD = "ssljax/alive/"  # where the processes of a run note their phase, in JAX's key-value store


def leave(code):
    """Ends this process, which has failed, with exit code `code`.

    In a run of several it goes without ceremony: an ordered exit waits minutes for the others, who wait in a collective or in a save for
    this one; `--peer_timeout` seconds later they are gone as well. Those that fail alike get five seconds to say so; any that does not
    is named, with the phase it was last heard of in: the collective that failed here may have failed for want of it.
    """
    client = _client() if "jax" in sys.modules else None
    if client is None:
        sys.exit(code)
    try:
        client.wait_at_barrier("ssljax/failed", 5000)
    except Exception as error:  # whatever the transport raises
        absent = re.search(r"timed out task names:\s*([\d\s,]+)", str(error))
        indices = [int(index) for index in re.findall(r"\d+", absent[1])] if absent else [0]  # not even the coordinator answers
        last = {}
        with contextlib.suppress(Exception):
            last = {int(key.rpartition("/")[2]): text for key, text in client.key_value_dir_get(BOARD)}
        for index in indices[:10]:
            phase = f"it was {last[index].rpartition(' (')[0]}" if index in last else "its phase is not known"
            _tell(f"process {index} does not answer, {phase}: look there first")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _tell(text):
    print(text, file=sys.stderr, flush=True)


# -------------------------------------------------------------------------------------------------------- one run a workdir
@contextlib.contextmanager
def lock(workdir):
    """Holds `workdir`/lock. The kernel lets go of it when a process ends, however it ends: what a killed run leaves behind is a name in
    a file that nobody holds, on this host or, over NFS, on another. Yields that name, "" if the last run ended by itself.

    Raises UserError if workdir cannot be written, or naming host and process of the run that is there.
    """
    path = pathlib.Path(workdir) / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written: {error.strerror}; choose another, or mend that") from error
    with file:
        taken = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            taken = False
        except OSError:
            pass  # a file system without locks: better no lock than no run
        file.seek(0)
        owner = file.read().strip()
        if not taken:
            raise UserError(f"--workdir {workdir} is in use by {owner or 'another run'}: wait for it, end it, or choose another")
        _rewrite(file, f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}")
        try:
            yield owner
        finally:
            _rewrite(file, "")


def _rewrite(file, text):
    with contextlib.suppress(OSError):  # a full disk: the lock holds without the name
        file.truncate(0)
        file.write(text)
        file.flush()


# ---------------------------------------------------------------------------------------------------------------- preemption
class Stop:
    """`with Stop() as stop`: `stop.reached(step)`, called after every step, turns true after SIGTERM or SIGINT.

    In a run of several processes it turns true after the same step on all, whichever was told (JAX's preemption service finds the
    step; its own handler takes SIGTERM). The second signal kills: with one process at once, with several once that step is reached.
    """

    def __enter__(self):
        self._asked, self._shared, self._before = False, _client() is not None, {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handler
            for number in (signal.SIGINT,) if self._shared else (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        os.write(2, f"\n{signal.Signals(number).name}: this step ends, then the run saves and stops; once more kills it\n".encode())
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        if self._shared:
            os.kill(os.getpid(), signal.SIGTERM)
        self._asked = True

    def reached(self, step):
        """step: int, steps done. Waits for no device."""
        if not self._shared:
            return self._asked
        from jax.experimental import multihost_utils

        reached = multihost_utils.reached_preemption_sync_point(step)
        if reached and threading.current_thread() is threading.main_thread():
            self._before.setdefault(signal.SIGTERM, signal.SIG_DFL)  # JAX's is not Python's, and cannot be put back
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return reached

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------------------------ watchdog
class Watchdog:
    """`with Watchdog() as watch`: a thread that names the phase and the host of a step that takes `factor` times the median, and a
    process that has fallen silent. It looks at the clock and asks no device; it speaks, and ends nothing.

    The loop calls `watch(phase, step)` as each phase begins: "read" and "step" make a step; any other ("save", "evaluation") is held
    to the median of its own. least: seconds below which nothing is slow. patience: seconds after which a peer is silent; JAX itself
    ends the run at `--peer_timeout`. client: see `_client`; say: prints a line; clock: () -> seconds.
    """

    def __init__(self, *, factor=10.0, least=10.0, patience=10.0, interval=None, index=0, client=None, say=_tell, clock=time.monotonic):
        self._factor, self._least, self._patience, self._say, self._clock = factor, least, patience, say, clock
        self._interval = interval or min(5.0, patience / 4)
        self._index, self._client, self._host = index, client, socket.gethostname()
        self._durations = collections.defaultdict(lambda: collections.deque(maxlen=50))
        self._phase, self._step, self._since, self._named = "start", 0, clock(), False
        self._heard, self._silent, self._beats = {}, set(), 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @classmethod
    def of_run(cls, patience):
        """The watchdog of this process of a run that JAX has begun."""
        import jax

        client = _client() if jax.process_count() > 1 else None
        return cls(patience=patience, index=jax.process_index(), client=client)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join(10.0)  # it may be asking a coordinator that is gone
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.key_value_delete(f"{BOARD}{self._index}")

    def __call__(self, phase, step):
        if phase != "step":  # which goes on with the clock of its "read"
            now = self._clock()
            self._durations[_kind(self._phase)].append(now - self._since)
            self._since, self._named = now, False
        self._phase, self._step = phase, step

    def _watch(self):
        while not self._end.wait(self._interval):
            self.look()
            if self._client is not None:
                self.listen()

    def look(self):
        """Names the phase if it has lasted too long; once a step."""
        phase, elapsed = self._phase, self._clock() - self._since
        known = list(self._durations[_kind(phase)])
        if self._named or len(known) < (3 if _kind(phase) == "step" else 1):
            return
        median = statistics.median(known)
        if elapsed > max(self._factor * median, self._least):
            self._named = True
            self._say(
                f"watchdog: {self._host}, process {self._index}: in {phase!r} of step {self._step} for {elapsed:.0f} s, where the median "
                f"is {median:.2g} s"
            )

    def listen(self):
        """Tells the other processes where this one is, and names those that have told nothing for too long."""
        self._beats += 1
        mine = f"{self._host}, in {self._phase!r} of step {self._step} ({self._beats})"
        try:
            self._client.key_value_set(f"{BOARD}{self._index}", mine, allow_overwrite=True)
            said = dict(self._client.key_value_dir_get(BOARD))
        except Exception:  # whatever the transport raises
            said = {}
            if 0 not in self._silent:
                self._silent.add(0)
                self._say(f"watchdog: process 0, which the others meet at, does not answer; this is process {self._index}, {mine}")
        now = self._clock()
        for key, text in said.items():
            index = int(key.rpartition("/")[2])
            before, since = self._heard.get(index, (None, now))
            self._heard[index] = (text, since if text == before else now)
            if text != before:
                self._silent.discard(index)
            elif now - since > self._patience and index not in self._silent:
                self._silent.add(index)
                self._say(
                    f"watchdog: process {index} has been silent for {now - since:.0f} s; it was {text.rpartition(' (')[0]}. "
                    f"This is process {self._index}, {mine.rpartition(' (')[0]}"
                )


def _kind(phase):
    return "step" if phase in ("read", "step") else phase


# ---------------------------------------------------------------------------------------------------------------- non-finite
class NonFinite:
    """Counts steps whose loss or gradient was not finite. The train step left the parameters alone; this says when it is enough.

    policy: "halt", or "skip:K": K such steps in a row are passed over.
    """

    def __init__(self, policy):
        self.allowed = skips(policy)
        self.row = 0

    def __call__(self, step, metrics):
        """What step `step` came to -> a line to show, "" for an ordinary step. Waits for the step to end."""
        if not float(metrics["nonfinite"]):
            self.row = 0
            return ""
        self.row += 1
        loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
        return f"step {step}: loss {loss}, gradient norm {norm}: not applied; {self.row} in a row, {self.allowed} allowed"

    @property
    def too_many(self):
        """Whether the last step seen was one more than is allowed."""
        return self.row > self.allowed


def skips(policy):
    """config.nan -> how many non-finite steps in a row are passed over: 0 for "halt", K for "skip:K". Raises UserError."""
    word, _, count = policy.partition(":")
    if policy == "halt":
        return 0
    if word != "skip" or not count.isdecimal() or int(count) < 1:
        raise UserError(f"config.nan={policy!r}: expected halt, or skip:K, K >= 1 the non-finite steps in a row that are passed over")
    return int(count)


def halt(workdir, step, metrics, ids, norms):
    """Writes `workdir`/nonfinite.json (workdir None: not this process's task) -> the UserError to raise.

    ids: example ids of the batch. norms: {parameter: norm of its gradient, or norms along its stacked layers}.
    """
    spell = lambda x: [spell(y) for y in x] if isinstance(x, list) else x if math.isfinite(x) else str(x)  # noqa: E731
    norms = {name: spell(value.tolist()) for name, value in norms.items()}
    numbers = {name: spell(float(value)) for name, value in metrics.items()}
    bad = [name for name, value in norms.items() if any(isinstance(x, str) for x in (value if isinstance(value, list) else [value]))]
    if workdir is not None:
        text = json.dumps({"step": step, "metrics": numbers, "ids": ids.tolist(), "gradient_norms": norms}, indent=1)
        with contextlib.suppress(OSError):  # the reason to stop is not the disk
            (pathlib.Path(workdir) / "nonfinite.json").write_text(text)
    where = f"{len(bad)} of {len(norms)} parameters have no finite gradient, first {bad[0]}" if bad else "every gradient is finite now"
    return UserError(
        f"the loss is {numbers['loss']}, the gradient norm {numbers['gradient_norm']} at step {step}: stopped, and nothing of it was saved "
        f"or applied; {where} (WORKDIR/nonfinite.json has all, and the batch's ids). Lower config.optim.lr.peak, set "
        "config.optim.clip_norm, or pass over K such steps in a row with --config.nan=skip:K"
    )
