"""What a run tells about itself: metric files written behind its back, FLOPs, throughput, and a progress bar."""

import collections
import json
import math
import os
import pathlib
import queue
import sys
import threading
import time

import jax
import numpy as np

from ssljax import trees
from ssljax.errors import UserError

# -------------------------------------------------------------------------------------------------------------- writing


class Writer:
    """Writes scalars to `directory`/metrics.jsonl, TensorBoard event files beside it and, if asked, Weights & Biases.

    `write` only queues: a background thread fetches the arrays from the devices and writes, so the caller never waits
    for a step to end. An exception of that thread is raised by the next `write`, `flush` or `close`.

    wandb: None, or a dict of keyword arguments of `wandb.init` (UserError if the package is not installed).
    active: False on all processes but the first of a multi-process run: every call does nothing.
    """

    def __init__(self, directory, *, wandb=None, active=True):
        self.latest = {}  # the scalars most recently fetched, {"step": int, name: float}: reading it waits for nothing
        self._active = active
        if not active:
            return
        directory = pathlib.Path(directory)
        self._path = directory / "metrics.jsonl"
        self._purge = None
        self._file = self._events = None  # opened by the first line, after a possible `resume`
        self._run = _wandb_run(directory, wandb) if wandb is not None else None
        self._error = None
        self._queue = queue.Queue(maxsize=1024)  # a disk that lags more lines than this does hold the caller up
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"metrics cannot be written to {directory}: {error}") from error
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
        self._thread.start()

    def resume(self, step):
        """Before the first `write` of a run that goes on from `step`: forgets what was logged after it, atomically.

        -> seconds (float) of the steps after it, which were taken, are forgotten, and are taken again."""
        if not self._active:
            return 0.0
        self._purge = step + 1
        if not self._path.exists():
            return 0.0
        lines = read(self._path)
        kept = [line for line in lines if line["step"] <= step]
        scratch = self._path.with_suffix(".jsonl.tmp")
        scratch.write_text("".join(_encode(line) + "\n" for line in kept))
        os.replace(scratch, self._path)
        again = [line for line in lines if line["step"] > step and "seconds_per_step" in line]
        return (again[-1]["step"] - step) * again[-1]["seconds_per_step"] if again else 0.0

    def write(self, step, metrics):
        """Queues a line. step: int. metrics: {name: number or array of one element}, on any device."""
        if self._active:
            self._raise()
            self._queue.put((int(step), dict(metrics)))

    def flush(self):
        """Blocks until everything queued is on disk."""
        if not self._active:
            return
        self._queue.join()
        if self._file is not None and self._error is None:
            self._file.flush()
            self._events.flush()
        self._raise()

    def close(self):
        """`flush`, and the end of this writer; a second call does nothing."""
        if not self._active:
            return
        try:
            self.flush()
        finally:
            self._active = False
            self._queue.put(None)
            self._thread.join()
            if self._file is not None:
                self._file.close()
                self._events.close()
            if self._run is not None:
                self._run.finish()

    def _work(self):
        while (item := self._queue.get()) is not None:
            try:
                if self._error is None:  # after an error the queue is only emptied, so that nobody blocks on it
                    self._write_line(*item)
            except Exception as error:
                self._error = error
            finally:
                self._queue.task_done()

    def _write_line(self, step, metrics):
        if self._file is None:
            from tensorboardX import SummaryWriter

            self._file = self._path.open("a", buffering=1)  # a line at a time, readable while the run goes on
            self._events = SummaryWriter(str(self._path.parent), purge_step=self._purge)
        scalars = {name: float(np.asarray(value).reshape(())) for name, value in jax.device_get(metrics).items()}
        self._file.write(_encode({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)
        if self._run is not None:
            self._run.log(scalars, step=step)
        self.latest = {"step": step, **scalars}

    def _raise(self):
        if isinstance(self._error, OSError):
            raise UserError(f"metrics cannot be written to {self._path}: {self._error}") from self._error
        if self._error is not None:
            raise self._error


def read(path):
    """metrics.jsonl -> list of {"step": int, name: float}; NaN and infinities are floats again.

    path: the file, or the directory it is in. A last line cut short by a killed run is left out.
    """
    path = pathlib.Path(path)
    lines = (path / "metrics.jsonl" if path.is_dir() else path).read_text().splitlines()
    rows = []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines) - 1:
                break
            raise UserError(f"{path}, line {number + 1} is not JSON: {error}") from error
        rows.append({name: float(value) if isinstance(value, str) else value for name, value in row.items()})
    return rows


def _encode(line):
    """JSON knows no NaN and no infinity: they become the strings "nan", "inf", "-inf", which float() reads back."""
    spelt = {name: value if math.isfinite(value) else str(value) for name, value in line.items()}
    return json.dumps(spelt, allow_nan=False)


def _wandb_run(directory, options):
    try:
        import wandb
    except ImportError as error:
        message = "log.wandb is set, but the package is not installed: pip install wandb, or log.wandb=None"
        raise UserError(message) from error
    return wandb.init(**{"dir": str(directory), "resume": "allow", **options})


# ---------------------------------------------------------------------------------------------------------------- FLOPs


def count_flops(function, *args):
    """FLOPs (float) of the matrix multiplications and convolutions of one call, over all devices, from its jaxpr.

    args: arrays or jax.ShapeDtypeStruct; nothing is executed. For a `jax.jit`ted function its own cached trace is used.
    A multiply-add counts as 2. Scans count times their length, `shard_map` bodies times the devices they run on, Pallas
    kernels times their grid, rematerialised computation each time it is done; of a `cond` the dearest branch; of a
    `while_loop`, whose trip count is not in the program, one iteration. In convolutions taps that fall into the padding
    count, as is the convention; zeros that a strided convolution's gradient puts between its inputs do not. Nor do the logits that
    cuDNN's flash attention forms again in its backward pass; those of attention in turns on a TPU do.
    """
    traced = function.trace(*args).jaxpr if hasattr(function, "trace") else jax.make_jaxpr(function)(*args)
    return float(_jaxpr_flops(traced.jaxpr))


def _jaxpr_flops(jaxpr):
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation):
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        return _conv_flops(equation)
    if name.startswith("dot_product_attention_"):  # cuDNN's flash attention: two products forward, four backward
        (batch, n, heads, width), m = equation.invars[0].aval.shape, equation.invars[1].aval.shape[1]
        return (4 if "_fwd" in name else 8) * batch * heads * n * m * width
    inner = [_jaxpr_flops(jaxpr) for jaxpr in subjaxprs(params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * _repeats(name, params)


def _repeats(name, params):
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        axes = params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]  # by jax version
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    if name == "pallas_call":
        return math.prod(size for size in params["grid_mapping"].grid if isinstance(size, int))
    return 1


def subjaxprs(params):
    """The jaxprs among an equation's parameters, bare or closed, alone or in a tuple."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def _conv_flops(equation):
    params = equation.params
    numbers = params["dimension_numbers"]
    rhs, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    in_channels = rhs[numbers.rhs_spec[1]]  # of one feature group
    pairs = 1  # of an output position and a kernel tap that meets an input, or the padding
    for i, (out_axis, rhs_axis) in enumerate(zip(numbers.out_spec[2:], numbers.rhs_spec[2:], strict=True)):
        position = np.arange(out[out_axis])[:, None] * params["window_strides"][i] - params["padding"][i][0]
        position = position + np.arange(rhs[rhs_axis]) * params["rhs_dilation"][i]  # in the dilated input
        pairs *= int(np.count_nonzero(position % params["lhs_dilation"][i] == 0))
    return 2 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * in_channels * pairs


# Peak dense TFLOP/s of one JAX device: (bfloat16 or float16, float32 as XLA multiplies it by default: TF32 on NVIDIA
# since Ampere, one bfloat16 pass on TPU). A chip that JAX shows as two devices (TPU v2, v3, 7x) has its figure halved.
# Sources: Google Cloud's system architecture pages of TPU v2 to TPU7x; NVIDIA's datasheets of V100, T4, A10, A30, A40,
# A100, L4, L40S, H100, H200 and GH200, and its Blackwell architecture brief (B200, GB200); figures without sparsity.
_PEAK_TFLOPS = (
    (r"^TPU v2", (45 / 2, 45 / 2)),
    (r"^TPU v3", (123 / 2, 123 / 2)),
    (r"^TPU v4 lite", (138, 138)),
    (r"^TPU v4", (275, 275)),
    (r"^TPU v5 ?(lite|e)", (197, 197)),
    (r"^TPU v5p?$", (459, 459)),
    (r"^TPU v6 ?(lite|e)", (918, 918)),
    (r"^TPU7x", (2307 / 2, 2307 / 2)),
    (r"V100-PCIE", (112, 14)),
    (r"V100", (125, 15.7)),
    (r"\bT4\b", (65, 8.1)),
    (r"\bA10\b", (125, 62.5)),
    (r"\bA10G\b", (70, 35)),
    (r"\bA30\b", (165, 82)),
    (r"\bA40\b", (149.7, 74.8)),
    (r"A100", (312, 156)),
    (r"\bL4\b", (121, 60)),
    (r"L40S", (362, 183)),
    (r"H100 PCIe", (756, 378)),
    (r"H[12]00 NVL", (835, 417)),
    (r"H100|H200", (989, 494.5)),  # SXM, and GH200
    (r"GB200", (2500, 1250)),
    (r"B200", (2250, 1125)),
)


def peak_flops(device_kind, dtype):
    """Peak dense FLOP/s (float) of one device, or None where it is not known: CPUs, unlisted chips, other dtypes.

    device_kind: as JAX spells it, `jax.devices()[0].device_kind`: "TPU v5 lite", "NVIDIA H100 80GB HBM3", "cpu".
    dtype: of the matrix multiplications: bfloat16, float16 or float32.
    """
    name = np.dtype(dtype).name
    peaks = trees.first_match(_PEAK_TFLOPS, device_kind)
    if peaks is None or name not in ("bfloat16", "float16", "float32"):
        return None
    if name == "bfloat16" and ("V100" in device_kind or "T4" in device_kind):
        return None  # no bfloat16 units before Ampere
    return peaks[name == "float32"] * 1e12


# ----------------------------------------------------------------------------------------------------------- throughput


class Goodput:
    """Where a run's wall time goes, over all its restarts: `goodput(part)` as each part begins; `text()` at the end.

    before: the seconds {part: float} of earlier processes of this run, as `seconds()` gave them. clock: () -> seconds."""

    def __init__(self, before=None, *, since=None, clock=time.monotonic):
        self._clock, self._spent = clock, collections.Counter(before or {})
        self._part, self._since = "start", clock() if since is None else since

    def __call__(self, part):
        now = self._clock()
        self._spent[self._part] += now - self._since
        self._part, self._since = part, now

    def move(self, seconds, source, target):
        """Counts so many seconds of one part as another's."""
        self._spent[source] -= seconds
        self._spent[target] += seconds

    def seconds(self):
        """{part: seconds} up to now."""
        self(self._part)
        return dict(self._spent)

    def text(self):
        """ "goodput 81 % of 412 s: step 334 s, compile 31 s, ...", the parts by their length."""
        spent = self.seconds()
        total = sum(spent.values())
        parts = ", ".join(f"{part} {s:.0f} s" for part, s in sorted(spent.items(), key=lambda item: -item[1]) if s >= 0.5)
        return f"goodput {100 * spent.get('step', 0.0) / max(total, 1e-9):.0f} % of {total:.0f} s: {parts}"


class Reference:
    """Is a run on track? `reference(step, numbers)` -> a line at each tenth of the reference's steps, or None.

    path: a run's workdir, whose loss (the median of five lines) may be missed by 5 % or by three deviations of those lines; or a .json
    file {metric: [[step, least, most], ...]}, bands of several runs. Raises UserError for a file that is neither."""

    def __init__(self, path):
        self._path, self._seen = str(path), -1
        path = pathlib.Path(path)
        try:
            self._bands = json.loads(path.read_text()) if path.suffix == ".json" else _bands(read(path))
            self._bands = {name: np.asarray(band, np.float64).reshape(-1, 3) for name, band in self._bands.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"config.log.reference={self._path!r}: expected a run's workdir or a .json of bands ({error})") from None
        if not any(map(len, self._bands.values())):
            raise UserError(f"config.log.reference={self._path!r} has no loss to be held against")
        self.outside = 0  # lines so far that said so

    def __call__(self, step, numbers):
        lines = []
        for name, band in self._bands.items():
            steps, low, high = band.T
            marks = np.linspace(steps[0], steps[-1], 11)
            passed = int(np.searchsorted(marks, step, side="right"))
            if name not in numbers or not steps[0] <= step <= steps[-1] or passed == self._seen:
                continue
            self._seen = passed
            least, most = (float(np.interp(step, steps, side)) for side in (low, high))
            inside = least <= float(numbers[name]) <= most
            self.outside += not inside
            lines.append(
                f"step {step}: {'on track' if inside else 'OFF TRACK'}: {name} {float(numbers[name]):.4g}, {self._path} has "
                f"{least:.4g} to {most:.4g}"
            )
        return "; ".join(lines) or None


def _bands(rows, name="loss", window=5):
    """[[step, least, most], ...] of metrics.jsonl's lines, under `name`."""
    rows = [row for row in rows if math.isfinite(row.get(name, math.nan))]
    steps, values = (np.array([row[key] for row in rows]) for key in ("step", name))
    out = []
    for i in range(len(rows)):
        near = values[max(0, i - window // 2) : i + window // 2 + 1]
        slack = max(3 * float(near.std()), 0.05 * abs(float(np.median(near))))
        out.append([int(steps[i]), float(np.median(near)) - slack, float(np.median(near)) + slack])
    return {name: out}


class Throughput:
    """Rates over a sliding window of steps, from the host's clock.

    batch: examples a step, all devices together. flops: of a step, all devices together (`count_flops`).
    devices: how many. peak: FLOP/s of one (`peak_flops`), or None. window: steps. clock: () -> seconds.
    """

    def __init__(self, batch, flops, devices, peak, *, window=50, clock=time.monotonic):
        self._batch, self._flops, self._devices, self._peak, self._clock = batch, flops, devices, peak, clock
        self._marks = collections.deque(maxlen=window + 1)  # (seconds, step, seconds stalled on the way to it)

    def update(self, step, stall_seconds=0.0):
        """After step `step` (int, steps done), of which `stall_seconds` were spent waiting for input.

        Returns {} the first time, then "images_per_second", "seconds_per_step", "input_stall" (fraction, 0 to 1) and
        "mfu" (model FLOPs utilisation, a fraction of the peak; absent where flops or peak are unknown).
        """
        self._marks.append((self._clock(), step, stall_seconds))
        seconds, steps = self._elapsed()
        if steps <= 0 or seconds <= 0:
            return {}
        stalled = sum(mark[2] for mark in list(self._marks)[1:])
        rates = {
            "images_per_second": self._batch * steps / seconds,
            "seconds_per_step": seconds / steps,
            "input_stall": min(1.0, stalled / seconds),
        }
        if self._peak and self._flops:
            rates["mfu"] = self._flops * steps / seconds / (self._devices * self._peak)
        return rates

    def pause(self):
        """Forgets the window: after an evaluation, say, whose time is not the steps'."""
        self._marks.clear()

    def eta(self, total):
        """Seconds (float) until `total` steps are done at the window's pace, or None before two updates."""
        seconds, steps = self._elapsed()
        return (total - self._marks[-1][1]) * seconds / steps if steps > 0 else None

    def _elapsed(self):
        if len(self._marks) < 2:
            return 0.0, 0
        (start, first, _), (end, last, _) = self._marks[0], self._marks[-1]
        return end - start, last - first


# --------------------------------------------------------------------------------------------------------------- alarms

# (what it is called, numbers it needs, when, the diagnosis). A rule applies where a method or an evaluation reports its numbers.
# teacher_entropy is the mean over examples, prototype_entropy that of the mean: their difference is what the teacher tells examples
# apart by. Bounds are far from what runs that learn show (DINO on the scenes: 4.7 of 5.5 and 5.5; RankMe 14 to 29; std 0.3 to 1).
RULES = (
    (
        "uniform teacher", ("teacher_entropy", "prototype_entropy"),
        lambda own, mean: mean > 0.5 and own > 0.98 * mean,
        "teacher_entropy {0:.3g} is that of the mean, {1:.3g}: the teacher says the same of every picture (at ln K, of K prototypes, it is "
        "uniform); lower the teacher's temperature or raise the centre's momentum",
    ),
    (
        "one prototype", ("prototype_entropy",), lambda mean: mean < 0.3,
        "prototype_entropy {0:.3g} is near 0: every picture falls on one prototype; raise the teacher's temperature, or lower the centre's "
        "momentum so that it follows the outputs",
    ),
    (
        "no gradient", ("gradient_norm",), lambda norm: norm == 0.0,
        "gradient_norm is 0: nothing is learned; are all parameters frozen, or is the loss a constant?",
    ),
    (
        "one direction", ("feature_std",), lambda std: std < 0.02,
        "feature_std {0:.2g} is near 0: all features point one way, the encoder has collapsed; lower the learning rate, or look at what "
        "keeps this method from a constant (negatives, a predictor, a stopped gradient, a centre)",
    ),
    (
        "few dimensions", ("rankme",), lambda rank: rank < 2.0,
        "rankme {0:.3g} of at least 2: the features lie on a line; lower the learning rate, or weigh what spreads dimensions higher",
    ),
    (
        "dead dimensions", ("feature_dead",), lambda dead: dead > 0.5,
        "feature_dead {0:.0%} of the features' dimensions do not vary over pictures; lower the learning rate or the weight decay",
    ),
    (
        "stale queue", ("queue_drift",), lambda drift: drift > 0.6,
        "queue_drift {0:.2g}: the mean of the new keys is that far from the mean of the queue's, which come from another teacher than this "
        "one; shorten the queue, or raise method.ema so that the teacher moves less while a key waits",
    ),
)  # fmt: skip


class Alarms:
    """Has it collapsed? RULES over the numbers that methods and evaluations report, a line of diagnosis for each that holds.

    after: step before which nothing is said: at the start a teacher is uniform, and should be. patience: observations in a row that a
    rule must hold for; one of an evaluation's numbers is enough.
    """

    def __init__(self, after=0, patience=5):
        self._after, self._patience, self._rows = after, patience, collections.Counter()

    def __call__(self, step, numbers, *, patience=None):
        """numbers: {name: float}, as logged at `step`. -> list of lines, each rule's once while it holds."""
        lines = []
        for name, needs, holds, diagnosis in RULES:
            if step < self._after or not all(need in numbers for need in needs):
                continue
            values = [float(numbers[need]) for need in needs]
            self._rows[name] = self._rows[name] + 1 if holds(*values) else 0
            if self._rows[name] == (patience or self._patience):
                lines.append(f"step {step}: alarm, {name}: " + diagnosis.format(*values))
        return lines


def spread(features):
    """{"feature_dead"}: share of the dimensions of features (N, D) whose standard deviation is under 1 % of the largest's."""
    deviation = np.asarray(features, np.float32).std(axis=0)
    return {"feature_dead": float(np.mean(deviation <= 0.01 * deviation.max()))}


# ------------------------------------------------------------------------------------------------------------- progress


class Progress:
    """A progress bar on stderr; where that is not a terminal, a plain line every `seconds` seconds instead.

    total, initial: steps. description: a word or two. active: False on all processes but the first.
    """

    def __init__(self, total, initial=0, description="train", *, active=True, stream=None, seconds=10.0, clock=time.monotonic):
        self._total, self._step, self._description = total, initial, description
        self._stream = sys.stderr if stream is None else stream
        self._seconds, self._clock, self._printed = seconds, clock, None
        self._active, self._bar, self._last = active, None, {}
        if active and self._stream.isatty():
            from tqdm import tqdm

            layout = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {postfix}"
            self._bar = tqdm(
                total=total,
                initial=initial,
                desc=description,
                file=self._stream,
                mininterval=0.5,
                bar_format=layout,
                dynamic_ncols=True,
            )

    def update(self, step, metrics, eta=None):
        """step: int, steps done. metrics: floats by the names of `Writer` and `Throughput` ("loss", "mfu", ...), any of
        which may be missing. eta: seconds, or None."""
        if not self._active:
            return
        self._last = metrics, eta
        advance, self._step = step - self._step, step
        if self._bar is not None:
            self._bar.set_postfix_str(status(metrics, eta), refresh=False)
            self._bar.update(advance)
        elif self._printed is None or self._clock() - self._printed >= self._seconds:
            self._line()

    def write(self, text):
        """Prints a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._active:
            print(text, file=self._stream, flush=True)

    def close(self):
        """Shows the last state, and ends the bar."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
        elif self._active and self._last:
            self._line()
        self._active, self._bar = False, None

    def _line(self):
        self._printed, (metrics, eta), self._last = self._clock(), self._last, {}
        percent = 100 * self._step // max(1, self._total)
        text = f"{self._description} {self._step}/{self._total} ({percent}%) {status(metrics, eta)}"
        print(text, file=self._stream, flush=True)


def status(metrics, eta=None):
    """{"loss": 1.5, "images_per_second": 812.0, ...} -> "loss 1.500, 812 images/s, MFU n/a, stall 3%, ETA 0:12:05"."""
    parts = [f"loss {metrics['loss']:.4g}"] if "loss" in metrics else []
    if "images_per_second" in metrics:
        parts.append(f"{metrics['images_per_second']:.{0 if metrics['images_per_second'] >= 10 else 1}f} images/s")
    parts.append(f"MFU {100 * metrics['mfu']:.1f}%" if "mfu" in metrics else "MFU n/a")
    if "input_stall" in metrics:
        parts.append(f"stall {100 * metrics['input_stall']:.0f}%")
    if eta is None:
        return ", ".join(parts)
    minutes, seconds = divmod(round(eta), 60)
    return ", ".join(parts + [f"ETA {minutes // 60}:{minutes % 60:02}:{seconds:02}"])
