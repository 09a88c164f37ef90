"""Contrastive losses on one GPU at large batches: time, peak memory and error, against the dense JAX form and open_clip's in PyTorch.

    python launch/bench/losses_gpu.py                          # batches of 32,768 and 131,072, width 768, bfloat16 and float32
    python launch/bench/losses_gpu.py --batches 4096 --dtypes float32 --rounds 3 --error_batch 600      # what a CPU can do of it
    python launch/bench/losses_gpu.py --blocks 1024,2048,4096,8192     # ours alone, by the rows of a block

Loss and gradients in both sides, scale (and bias), in one process: forms take turns, medians over rounds. Peak memory: for JAX what the
compiler allocates with inputs and outputs; for PyTorch its allocator's peak. A form that does not fit in the device's memory is not run
and its row says what it would take, where that is known. PyTorch's form (world size 1, under autocast for bfloat16) is timed eager and
compiled; where torch is not installed or sees no GPU it is left out. Errors are greatest absolute differences from a float64 definition,
over the greatest entry of what is compared; the batch of that part is ragged on purpose.
"""

import functools
import importlib.util
import json
import os
import pathlib
import statistics
import sys

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launch.bench import rows  # noqa: E402
from ssljax import cli  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_list("batches", ["32768", "131072"], "rows of either side", flag_values=FLAGS)
flags.DEFINE_list("dtypes", ["bfloat16", "float32"], "of the encodings", flag_values=FLAGS)
flags.DEFINE_integer("width", 768, "of the encodings", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 10, "rounds; each takes one turn of every form", flag_values=FLAGS)
flags.DEFINE_list("blocks", [], "time our streamed forms by these rows of a block, and nothing else", flag_values=FLAGS)
flags.DEFINE_integer("error_batch", 10_000, "rows of the comparison with float64; 0: none", flag_values=FLAGS)
flags.DEFINE_string("out", str(ROOT / "launch/bench/results/losses_gpu.jsonl"), "rows are appended here", flag_values=FLAGS)
flags.DEFINE_bool("json", False, "end with one JSON line of the whole table", flag_values=FLAGS)

SCALE, BIAS = 20.0, -10.0


def encodings(batch, width):
    """Pairs of unit vectors that have something in common, of a loss around 1 at this scale, numpy float32."""
    import numpy as np

    random = np.random.default_rng(0)
    x, noise = (random.standard_normal((batch, width), np.float32) for _ in range(2))
    return [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, x + 2 * noise)]


def jax_forms():
    """{(family, form): function of x, y, scale[, bias]}; the first of a family is its dense one."""
    from ssljax import losses

    softmax = lambda impl: functools.partial(losses.clip_softmax, impl=impl)  # noqa: E731
    sigmoid = lambda impl: functools.partial(losses.siglip, impl=impl)  # noqa: E731
    makers = {"softmax": softmax, "sigmoid": sigmoid}
    return {
        (family, name): make(impl) for family, make in makers.items() for name, impl in (("dense", "dense"), ("ours, stream", "stream"))
    }


def arguments(family, pair, dtype):
    import jax.numpy as jnp

    scalars = (jnp.float32(SCALE), jnp.float32(BIAS))[: 2 if family == "sigmoid" else 1]
    return [*(jnp.asarray(z).astype(dtype) for z in pair), *scalars]


def capacity():
    """Bytes of the device's memory, or of what there is to know of it."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 8 * 2**30)


def build(function, args, tuned=True):
    """-> (call, GiB at its peak); call is None where that is more than the device has. tuned: let the compiler try its kernels, which
    takes memory too: of what cannot run it is left out."""
    import jax

    options = {} if tuned else {"xla_gpu_autotune_level": 0}
    lowered = jax.jit(jax.value_and_grad(function, tuple(range(len(args))))).lower(*args)
    compiled = lowered.compile(compiler_options=options)
    memory = compiled.memory_analysis()
    peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    call = lambda: jax.block_until_ready(compiled(*args))  # noqa: E731
    return call if peak < capacity() else None, peak / 2**30


def open_clip(pair, dtype, compiled):
    """-> call, of open_clip's ClipLoss for one process: both matrices of logits, cross entropy of each (its loss.py, world_size 1)."""
    import torch

    x, y = (torch.from_numpy(z).cuda().to(getattr(torch, dtype)).requires_grad_() for z in pair)
    scale = torch.tensor(SCALE, device="cuda", requires_grad=True)

    def loss(x, y, scale):
        image, text = scale * x @ y.T, scale * y @ x.T
        labels = torch.arange(len(x), device="cuda")
        return (torch.nn.functional.cross_entropy(image, labels) + torch.nn.functional.cross_entropy(text, labels)) / 2

    function = torch.compile(loss, dynamic=False) if compiled else loss

    def call():
        x.grad = y.grad = scale.grad = None
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == "bfloat16"):
            value = function(x, y, scale)
        value.backward()
        torch.cuda.synchronize()

    return call


def torch_forms(pair, dtype):
    """{name: (call or None, GiB at its peak or None)} of the forms of PyTorch, each tried once."""
    if not importlib.util.find_spec("torch"):
        return {}
    import torch

    found = {}
    for name in ("open_clip, eager", "open_clip, compiled") if torch.cuda.is_available() else ():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        call = open_clip(pair, dtype, "compiled" in name)
        try:
            call()
        except torch.OutOfMemoryError:
            found[name] = None, None
        else:
            found[name] = call, torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.empty_cache()
    return found


def turns(calls, rounds):
    """{name: median seconds} of calls that take turns, after two turns to warm up; without those that find no memory beside the others."""
    calls, times = dict(calls), {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in list(calls.items()):
            try:
                taken = rows.seconds(call)
            except Exception as error:  # PyTorch's and JAX's, by name
                if not any(sign in f"{type(error).__name__}: {error}" for sign in ("OutOfMemory", "RESOURCE_EXHAUSTED")):
                    raise
                print(f"{name}: no memory beside the others", file=sys.stderr)
                del calls[name]
            else:
                times[name] += [taken] * (turn > 1)
    return {name: statistics.median(times[name]) for name in calls}


def timed(built, batch, width, dtype):
    """Rows of forms {(family, form): (call or None, GiB or None)}, those that have a call timed in turns."""
    times = turns({key: call for key, (call, _) in built.items() if call}, FLAGS.rounds)
    for (family, name), (_, peak) in built.items():
        row = {"family": family, "form": name, "batch": batch, "width": width, "dtype": dtype}
        row |= {"peak_gib": None if peak is None else round(peak, 3)}
        mine, dense = times.get((family, name)), times.get((family, "dense"))
        if mine:
            work = 3 * 2 * batch**2 * width  # the three products that there must be
            row |= {"seconds": round(mine, 5), "tflops": round(work / mine / 1e12, 1)}
        yield row | ({"to_dense": round(mine / dense, 3)} if mine and dense else {})


def measure(batch, width, dtype):
    """Rows of every form at this batch. PyTorch first: what it tried in vain would find no memory behind JAX."""
    pair = encodings(batch, width)
    built = {("softmax", name): made for name, made in torch_forms(pair, dtype).items()}
    for (family, name), function in jax_forms().items():
        fits = name != "dense" or 2 * 4 * batch**2 < capacity() / 2  # logits and their gradient, float32
        built[family, name] = build(function, arguments(family, pair, dtype), tuned=fits)
    yield from timed(built, batch, width, dtype)


def by_block(batch, width, dtype):
    """Rows of our streamed forms, by the rows of a block."""
    from ssljax.losses import streaming

    pair, built = encodings(batch, width), {}
    for block in map(int, FLAGS.blocks):
        streaming.BLOCK = streaming.GPU_BLOCK = block
        for (family, name), function in jax_forms().items():
            if name != "dense":
                built[family, f"{name}, block {block}"] = build(function, arguments(family, pair, dtype))
    yield from timed(built, batch, width, dtype)


def definition(family, x, y):
    """Loss and gradients in x, y and scale (and bias) in float64, from the definitions."""
    import numpy as np

    x, y = x.astype(np.float64), y.astype(np.float64)
    products, n = x @ y.T, len(x)
    if family == "softmax":
        logits = SCALE * products
        rows, columns = (np.exp(logits - logits.max(axis, keepdims=True)) for axis in (1, 0))
        p, q = rows / rows.sum(1, keepdims=True), columns / columns.sum(0, keepdims=True)
        slope = (p + q) / 2 - np.eye(n)
        loss = -np.mean(np.log(np.diag(p)) + np.log(np.diag(q))) / 2
    else:
        sign = 2 * np.eye(n) - 1
        logits = sign * (SCALE * products + BIAS)
        loss, slope = np.logaddexp(0, -logits).sum() / n, -sign / (1 + np.exp(logits))
    slope /= n
    gradients = [SCALE * slope @ y, SCALE * slope.T @ x, np.sum(slope * products)]
    return loss, gradients + ([slope.sum()] if family == "sigmoid" else [])


def errors(batch, width, dtype):
    """Rows of every JAX form's error; encodings are rounded to `dtype` first, for the definition too."""
    import jax
    import numpy as np

    pair = [np.asarray(jax.numpy.asarray(z).astype(dtype).astype("float32")) for z in encodings(batch, width)]
    for family in ("softmax", "sigmoid"):
        loss, gradients = definition(family, *pair)
        wanted = {"loss": loss, **dict(zip(("x", "y", "scale", "bias"), gradients, strict=False))}
        for (own, name), function in jax_forms().items():
            if own == family:
                args = arguments(family, pair, dtype)
                value, slopes = jax.jit(jax.value_and_grad(function, tuple(range(len(args)))))(*args)
                given = {"loss": value, **dict(zip(("x", "y", "scale", "bias"), slopes, strict=False))}
                away = {k: float(np.max(np.abs(np.float64(given[k]) - v)) / np.max(np.abs(v))) for k, v in wanted.items()}
                row = {"family": family, "form": name, "batch": batch, "width": width, "dtype": dtype}
                yield row | {f"error_{k}": float(f"{v:.2e}") for k, v in away.items()}


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU's memory is PyTorch's too
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    import jax

    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
    table = []
    work = by_block if FLAGS.blocks else measure
    jobs = [(work, int(batch), dtype) for dtype in FLAGS.dtypes for batch in FLAGS.batches]
    if FLAGS.error_batch and not FLAGS.blocks:
        jobs += [(errors, FLAGS.error_batch, dtype) for dtype in FLAGS.dtypes]
    for job, batch, dtype in jobs:
        for row in job(batch, FLAGS.width, dtype):
            table.append(row | rows.origin())
            rows.keep(table[-1:], FLAGS.out)
            print(json.dumps(table[-1]), file=sys.stderr, flush=True)
    head = list(dict.fromkeys(name for row in table for name in row if name not in ("device", "cpu", "jax", "commit")))
    print(rows.markdown(head, [[str(row.get(name, "")) for name in head] for row in table]))
    if FLAGS.json:
        print(json.dumps(table))


if __name__ == "__main__":
    cli.command(main)
