"""Contrastive losses against the forms in which others compute them: matmul FLOPs, memory, bytes sent and time, in one interleaved run.

    python launch/bench/losses.py --quick                     # a minute: B=4096 timed, roughly, and B=65536 compiled for its memory
    python launch/bench/losses.py                             # all cases, on 1 and on 8 simulated devices
    python launch/bench/losses.py --quick --keep_memory       # as a run of ssljax has its memory
    python launch/bench/losses.py --weak                      # compile only: memory with 4,096 rows a device, on 2 to 64 devices
    python launch/bench/losses.py --topology v5e:16x16        # compile only, for TPUs: a batch of a million (needs the package libtpu)

Every form gives its loss and its gradients: in both sides, scale and bias; with a queue or constant keys in the queries alone.
Columns, of the loss and gradient together:
    FLOPs      of matrix products over all devices, from the jaxpr, in units of M = 2 rows columns D; a device does 1/P of them
    temporary  MiB a device, as the compiler allocates them: what there is beside inputs and gradients
    sent       MiB a device sends: from the collectives of the jaxpr; where the compiler splits a form, of its HLO
    seconds    median over rounds, each of which runs every form once; of two rounds the faster
    / dense    divided by that of the dense form of the same loss
    / floor    divided by that of as many M of bare matrix products, timed in the same rounds (`floors`): in blocks of 512 or whole,
               whichever is faster

Memory is glibc's as any program has it, which gives large temporaries back and gets them anew, as pages to be zeroed: the definition pays
for that, and its users do. A run of ssljax keeps what it frees (`cli.keep_memory`); with --keep_memory all forms have that.
"""

import collections
import concurrent.futures
import datetime
import functools
import gc
import itertools
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launch.bench.rows import keep, markdown, processor, seconds  # noqa: E402
from ssljax import cli, plan  # noqa: E402
from ssljax.errors import UserError  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_bool("quick", False, "a minute on two cores: B=4096 in two rounds, and B=65536 compiled on 1 and 8 devices", flag_values=FLAGS)
flags.DEFINE_bool("weak", False, "weak scaling, compiled only", flag_values=FLAGS)
flags.DEFINE_bool("keep_memory", False, "memory as a run of ssljax has it: what is freed stays with the process", flag_values=FLAGS)
flags.DEFINE_string("topology", "", "compile for this TPU topology, e.g. v5e:16x16, v4:16x16x16", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 5, "rounds of timing; two with --quick", flag_values=FLAGS)
flags.DEFINE_string("out", str(ROOT / "launch/bench/results/losses.jsonl"), "rows are appended here", flag_values=FLAGS)
flags.DEFINE_bool("json", False, "end with one JSON line of the whole table", flag_values=FLAGS)
flags.DEFINE_string("task", "", "what a process that this program has started shall measure, as JSON", flag_values=FLAGS)

MIB = 2**20
MOST_BYTES = 10 * 2**30  # forms whose temporaries take more on all simulated devices together are not timed
SCALE, BIAS, TEMPERATURE = 20.0, -10.0, 0.1

# -------------------------------------------------------------------------------------------------------------- forms
Form = collections.namedtuple("Form", "family name function arguments wanted")  # wanted: the arguments with a gradient
DENSE = {"softmax": "dense, global einsum", "sigmoid": "SigLIP, full"}
STREAMS = [["softmax", "ours, stream"], ["sigmoid", "ours, stream"]]


def forms():
    """Every form of every family; the first of a family is its dense one."""
    import rivals

    from ssljax import losses

    def ours(loss, impl, **fixed):
        return lambda *arguments: loss(*arguments, impl=impl, **fixed)

    softmax, sigmoid = ("x", "y", "scale"), ("x", "y", "scale", "bias")
    yield Form("softmax", DENSE["softmax"], ours(losses.clip_softmax, "dense"), softmax, softmax)
    yield Form("softmax", "all-gather everywhere", rivals.all_gather_everywhere, softmax, softmax)
    yield Form("softmax", "local rows (open_clip)", rivals.local_rows, softmax, softmax)
    yield Form("softmax", "scan + remat", rivals.scan_remat, softmax, softmax)
    yield Form("softmax", "Inf-CL ring", rivals.inf_cl, softmax, softmax)
    for impl in ("stream", "auto", "grid"):
        yield Form("softmax", f"ours, {impl}", ours(losses.clip_softmax, impl), softmax, softmax)
    yield Form("sigmoid", DENSE["sigmoid"], rivals.siglip_full, sigmoid, sigmoid)
    yield Form("sigmoid", "SigLIP, chunked", rivals.siglip_chunked, sigmoid, sigmoid)
    for impl in ("stream", "auto", "grid"):
        yield Form("sigmoid", f"ours, {impl}", ours(losses.siglip, impl), sigmoid, sigmoid)
    for impl in ("dense", "stream"):
        name = impl if impl == "dense" else f"ours, {impl}"
        queued = lambda q, k, queue, impl=impl: losses.info_nce(q, k, queue=queue, temperature=TEMPERATURE, impl=impl)  # noqa: E731
        yield Form("queue (MoCo)", name, queued, ("x", "y", "queue"), ("x",))
        yield Form("constant keys", name, ours(losses.info_nce, impl, temperature=TEMPERATURE), ("x", "y"), ("x",))
        yield Form("NT-Xent", name, ours(losses.nt_xent, impl, temperature=TEMPERATURE), ("x", "y"), ("x", "y"))


def unit(family, batch, width):
    """M: the FLOPs of one matrix of logits. The queue is as long as the batch; NT-Xent compares two views of every image."""
    rows = 2 * batch if family == "NT-Xent" else batch
    return 2 * rows * rows * width


def floors():
    """{(products, name): function of x, y}: that many M of bare matrix products, on each device's share of the rows.

    2: s = x y', s y;  3: and s' x;  4: and x y' once more, of other rows, or the compiler would merge the two. s takes the place of
    the gradient's weights: what a product costs does not depend on the numbers in it.
    """
    import jax
    import jax.numpy as jnp
    from jax import lax
    from rivals import SPLIT, WHOLE, dot, tiles

    def products(number, x, y):
        s = dot(x, y.T) + (dot(x, y[::-1].T) if number == 4 else 0.0)
        return (dot(s, y), dot(s.T, x)) if number > 2 else (dot(s, y), 0.0)

    def blocks(number, x, y):
        def row(dy, x):
            def pair(dx, of):
                y, dy = of
                more_x, more_y = products(number, x, y)
                return dx + more_x, dy + more_y

            dx, dy = lax.scan(pair, jnp.zeros_like(x), (tiles(y), dy))
            return dy, dx

        dy, dx = lax.scan(row, tiles(jnp.zeros_like(y)), tiles(x))
        return (dx, dy) if number > 2 else dx

    def whole(number, x, y):
        return products(number, x, y) if number > 2 else products(number, x, y)[0]

    split = lambda f: jax.shard_map(f, in_specs=(SPLIT, WHOLE), out_specs=SPLIT, check_vma=False)  # noqa: E731
    ways = [(number, "blocks", blocks) for number in (2, 3, 4)] + [(number, "whole", whole) for number in (2, 3)]
    return {(number, name): split(functools.partial(way, number)) for number, name, way in ways}  # two whole s would not be the floor


def floor_of(form, flops_m):
    """Which of the floors a form's products resemble: those of one side's gradient alone, of both, of both with the logits formed twice.
    None for Inf-CL, which forms them three times."""
    count = round(flops_m, 3)
    return 2 if form.wanted == ("x",) else 3 if count % 3 == 0 else 4 if count != 10 else None


# ---------------------------------------------------------------------------------------------------------- measuring
# Bytes that a device sends for an operand of n bytes among p devices, each at its least: rings for the reductions.
JAXPR_SENT = {
    "ppermute": lambda n, p: n * (p > 1),  # one device sends nothing to itself
    "all_gather": lambda n, p: (p - 1) * n,
    "reduce_scatter": lambda n, p: (p - 1) * n / p,
    "psum": lambda n, p: 2 * (p - 1) * n / p,
}
JAXPR_SENT |= {"psum_invariant": JAXPR_SENT["psum"], "psum_scatter": JAXPR_SENT["reduce_scatter"]}
HLO_SENT = {  # the same, of the bytes of the result
    "collective-permute": lambda n, p: n,
    "all-gather": lambda n, p: (p - 1) * n / p,
    "reduce-scatter": lambda n, p: (p - 1) * n,
    "all-reduce": lambda n, p: 2 * (p - 1) * n / p,
    "all-to-all": lambda n, p: (p - 1) * n / p,
}


def sent_bytes(jaxpr, devices):
    """Bytes a device sends in the explicit collectives of a jaxpr, multiplied through its scans."""
    from ssljax import metrics

    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in JAXPR_SENT:
            size = sum(v.aval.size * v.aval.dtype.itemsize for v in equation.invars)
            total += JAXPR_SENT[equation.primitive.name](size, devices)
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += repeats * sum(sent_bytes(inner, devices) for inner in metrics.subjaxprs(equation.params))
    return total


def sent_bytes_hlo(text, devices):
    """Bytes a device sends in the collectives of an HLO text without loops."""
    total = 0
    for shape, name in re.findall(r" = (\([^=]*?\)|\S+) ([a-z-]+?)(?:-start)?\(", text):
        if name in HLO_SENT:
            total += HLO_SENT[name](sum(array.size for array in plan.arrays_of(shape)), devices)
    return total


def abstract_arguments(form, batch, width, dtype, mesh):
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from rivals import SPLIT, WHOLE

    matrix = jax.ShapeDtypeStruct((batch, width), dtype, sharding=NamedSharding(mesh, SPLIT))
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, WHOLE))
    return [scalar if name in ("scale", "bias") else matrix for name in form.arguments]


def lower(form, batch, width, dtype, mesh):
    """-> what is known before compilation (a row), and the lowered loss with its gradients, laid out as their arrays are."""
    import jax
    from jax.sharding import NamedSharding
    from rivals import WHOLE

    from ssljax import metrics

    arguments = abstract_arguments(form, batch, width, dtype, mesh)
    wanted = tuple(form.arguments.index(name) for name in form.wanted)
    shardings = NamedSharding(mesh, WHOLE), tuple(arguments[i].sharding for i in wanted)
    function = jax.jit(jax.value_and_grad(form.function, wanted), out_shardings=shardings)
    traced = function.trace(*arguments)
    row = {"family": form.family, "form": form.name, "batch": batch, "width": width, "dtype": dtype, "devices": mesh.size}
    row["flops_m"] = metrics.count_flops(function, *arguments) / unit(form.family, batch, width)
    row["sent_mib"] = sent_bytes(traced.jaxpr.jaxpr, mesh.size) / MIB
    return row, traced.lower()


def finish(row, compiled):
    """Adds what only the compiler knows."""
    row["temporary_mib"] = compiled.memory_analysis().temp_size_in_bytes / MIB
    if row["devices"] > 1 and (row["form"].startswith("dense") or row["form"] == DENSE["sigmoid"]):
        row["sent_mib"] = sent_bytes_hlo(compiled.as_text(), row["devices"]) / MIB
    return row


def compile_all(some, batch, width, dtype, mesh):
    """-> list of (form, row, compiled)."""
    lowered = [(form, *lower(form, batch, width, dtype, mesh)) for form in some]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(lambda item: item[2].compile(), lowered))
    return [(form, finish(row, c), c) for (form, row, _), c in zip(lowered, compiled, strict=True)]


def inputs(batch, width, mesh):
    """Pairs of unit vectors that have something in common, and a queue that has nothing."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding
    from rivals import SPLIT, WHOLE

    random = np.random.default_rng(0)
    x, noise, queue = (random.normal(size=(batch, width)).astype(np.float32) for _ in range(3))
    normalised = lambda z: z / np.linalg.norm(z, axis=1, keepdims=True)  # noqa: E731
    arrays = {"x": normalised(x), "y": normalised(x + noise), "queue": normalised(queue)}
    arrays = {name: jax.device_put(z, NamedSharding(mesh, SPLIT)) for name, z in arrays.items()}
    return arrays | {n: jax.device_put(np.float32(v), NamedSharding(mesh, WHOLE)) for n, v in (("scale", SCALE), ("bias", BIAS))}


def timed(built, batch, width, mesh, rounds, untimed=(), once=()):
    """Times every form that fits, one after the other, `rounds` times, but those of `once` once and of `untimed` not at all. -> rows."""
    import jax
    from jax.sharding import NamedSharding
    from rivals import WHOLE

    arrays = inputs(batch, width, mesh)
    calls = {}
    for form, row, compiled in built:
        if row["temporary_mib"] * MIB * mesh.size <= MOST_BYTES and not named(form, untimed):
            calls[form.family, form.name] = functools.partial(compiled, *(arrays[name] for name in form.arguments))

    pair = arrays["x"], jax.device_put(arrays["y"], NamedSharding(mesh, WHOLE))
    ways = {key: functools.partial(jax.jit(function).lower(*pair).compile(), *pair) for key, function in floors().items()}
    calls |= {("floor", *key): way for key, way in ways.items()}

    rounds_of = collections.defaultdict(list)
    for turn in range(rounds + (rounds > 2)):  # of more than two rounds there is one before them, to warm up
        for key, call in calls.items():
            if turn and named(key, once):
                continue
            taken = seconds(lambda call=call: jax.block_until_ready(call()))
            if turn or rounds <= 2:
                rounds_of[key].append(taken)
    times = {key: statistics.median_low(some) for key, some in rounds_of.items()}

    dense = {form.family: times.get(form[:2]) for form, _, _ in reversed(built)}  # the first of each family
    for form, row, _ in built:
        mine, number = times.get(form[:2]), floor_of(form, row["flops_m"])
        if mine:
            row |= {"seconds": mine} | ({"to_dense": mine / dense[form.family]} if dense[form.family] else {})
        if mine and number:
            way = min(("blocks", "whole"), key=lambda name, n=number: times.get(("floor", n, name), math.inf))
            matrices = unit(form.family, batch, width) / unit("softmax", batch, width)
            row |= {"to_floor": mine / (times["floor", number, way] * matrices * row["flops_m"] / number), "floor": way}
        yield row


def make_mesh(devices):
    import numpy as np
    from jax.sharding import AxisType, Mesh

    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def named(form, names):
    """form: a Form, or its family and name. names: a list of [family, beginning of the form's name]."""
    return any(form[0] == family and form[1].startswith(name) for family, name in names)


def work(task):
    """What a process of its own measures; each row goes to stdout as a line of JSON."""
    import jax

    if len(jax.devices()) < task["devices"]:
        raise UserError(f"{task['devices']} devices are asked for, there are {len(jax.devices())}")
    mesh = make_mesh(jax.devices()[: task["devices"]])
    for case in task["cases"]:
        batch, width = case["batch"], case["width"]
        some = [form for form in forms() if "forms" not in case or named(form, case["forms"])]
        if mesh.size == 1:  # without those that are the stream's program again
            some = [form for form in some if form.name != "ours, grid" and form[:2] != ("sigmoid", "ours, auto")]
        with jax.set_mesh(mesh):
            built = compile_all(some, batch, width, "float32", mesh)
            measured = [row for _, row, _ in built]
            if case["rounds"]:
                measured = timed(built, batch, width, mesh, case["rounds"], case.get("untimed", ()), case.get("once", ()))
            for row in measured:
                print(json.dumps(row | {"device": jax.devices()[0].device_kind, "jax": jax.__version__}), flush=True)
        del built, measured
        gc.collect()


def spawn(task):
    """Runs `work` in a process with that many devices, which must be fixed before JAX starts. Yields its rows."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    if task["devices"] > 1:
        environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, str(pathlib.Path(__file__).resolve()), "--task", json.dumps(task)]
    command += ["--keep_memory"] * FLAGS.keep_memory
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise UserError(f"the process that measures on {task['devices']} devices ended with code {process.returncode}")


# ----------------------------------------------------------------------------------------------------------- the TPU
def compile_for_tpu(name, batch=2**20, width=768, dtype="bfloat16"):
    """Compiles the streamed losses for a topology of TPUs, none of which need be there. Yields rows."""
    plan.open_no_chip()
    import jax
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:  # of several types, by version
        raise UserError(f"--topology {name}: {error}; it needs libtpu: pip install 'libtpu==0.0.42.*'") from None
    mesh = make_mesh(devices)
    for form in (form for form in forms() if named(form, STREAMS)):
        with jax.set_mesh(mesh):
            row, lowered = lower(form, batch, width, dtype, mesh)
            compiled = lowered.compile()
        row = finish(row, compiled) | {"device": devices[0].device_kind, "jax": jax.__version__}
        share = batch // mesh.size
        sides = min(512, share), min(512, share // 2)  # of a block: the visiting rows travel in halves
        yield row | blocks_in_memory(compiled.as_text(), set(itertools.product(sides, sides)))


def blocks_in_memory(text, blocks):
    """Optimised HLO of a TPU -> bytes of the arrays of a block of logits that its loops write to HBM, and to VMEM ("S(1)" in the layout).

    blocks: its possible shapes. Each instruction counts once, as in one turn of its loop; what is inside a fusion is part of that
    instruction, and is not counted.
    """
    fused = set(re.findall(r"fusion\(.*?calls=%?([\w.-]+)", text))
    found, computation = {"hbm": 0, "vmem": 0}, ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            computation = header[1]
        instruction = re.match(r"\s+(?:ROOT )?%?\S+ = (\([^=]*?\)|\S+) ([a-z-]+)\(", line)
        if not instruction or computation in fused or instruction[2] in ("parameter", "get-tuple-element", "tuple", "bitcast", "while"):
            continue
        for array in plan.arrays_of(instruction[1]):
            if array.sides in blocks:
                found["hbm" if array.in_hbm else "vmem"] += array.size
    return {f"block_{place}_bytes": size for place, size in found.items()}


# ------------------------------------------------------------------------------------------------------------ results
COLUMNS = {  # heading: (key, format)
    "loss": ("family", ""), "form": ("form", ""), "B": ("batch", ""), "D": ("width", ""), "P": ("devices", ""),
    "FLOPs / M": ("flops_m", ".3f"), "temporary MiB": ("temporary_mib", ".1f"), "sent MiB": ("sent_mib", ".1f"),
    "seconds": ("seconds", ".3f"), "/ dense": ("to_dense", ".2f"), "/ floor": ("to_floor", ".2f"), "floor": ("floor", ""),
    "block in HBM": ("block_hbm_bytes", ""), "block in VMEM": ("block_vmem_bytes", ""),
}  # fmt: skip


def table(rows):
    """Markdown of the rows."""
    shown = {heading: of for heading, of in COLUMNS.items() if any(of[0] in row for row in rows)}
    return markdown(shown, [[format(row[key], form) if key in row else "-" for key, form in shown.values()] for row in rows])


def bars(rows):
    """What the losses are held to, by the rows that there are: (what, figure, limit)."""
    found = {(r["family"], r["form"], r["batch"], r["width"], r["devices"]): r for r in rows if r["dtype"] == "float32"}

    def one(what, key, limit, family, form, batch, devices, width=512):
        row = found.get((family, form, batch, width, devices), {})
        if key in row:
            yield f"{family} {form}, B={batch} P={devices}: {what}", row[key], limit

    memory, flops, dense, floor = (
        ("temporary MiB", "temporary_mib"), ("FLOPs / M", "flops_m"), ("time / dense", "to_dense"), ("time / floor", "to_floor"),
    )  # fmt: skip
    stream, auto = "ours, stream", "ours, auto"
    yield from one(*memory, 63, "softmax", stream, 65536, 8)
    yield from one(*flops, 4.0, "softmax", stream, 65536, 8)
    yield from one(*memory, 57, "sigmoid", stream, 65536, 8)
    yield from one(*memory, 145, "softmax", stream, 65536, 1)
    for devices in (1, 8):
        yield from one(*flops, 3.0, "softmax", auto, 4096, devices)
        yield from one(*flops, 3.0, "sigmoid", stream, 65536, devices)
        yield from one(*flops, 2.0, "queue (MoCo)", stream, 65536, devices)
        yield from one(*flops, 2.15, "NT-Xent", stream, 65536, devices)
    yield from one(*dense, 1.05, "softmax", stream, 4096, 1)
    yield from one(*dense, 0.9, "softmax", auto, 4096, 1)
    yield from one(*dense, 0.9, "sigmoid", stream, 4096, 1)
    for form in (stream, auto):
        yield from one(*dense, 0.8, "softmax", form, 16384, 1)
        yield from one(*dense, 0.75, "softmax", form, 4096, 8)
    for batch, devices in itertools.product((4096, 16384), (1, 8)):
        for form in (stream, auto):
            yield from one(*floor, 1.1, "sigmoid", form, batch, devices)
        yield from one(*floor, 1.4, "softmax", stream, batch, devices)
    for batch in (4096, 16384, 65536):
        gathered = found.get(("softmax", "local rows (open_clip)", batch, 512, 8))
        for form, limit in ((stream, 0.8), ("ours, grid", 0.45)):
            row = found.get(("softmax", form, batch, 512, 8))
            if row and gathered:
                yield f"softmax {form}, B={batch} P=8: sent / open_clip's", row["sent_mib"] / gathered["sent_mib"], limit
    for family in ("softmax", "sigmoid"):
        streamed = [r for r in rows if (r["family"], r["form"], r["dtype"]) == (family, stream, "float32")]
        shares = [(r["temporary_mib"] * MIB / general_bound(r), r["batch"], r["devices"], r["width"]) for r in streamed]
        if shares:
            share, batch, devices, width = max(shares)
            worst = f"at worst, B={batch} P={devices} D={width}"
            yield f"{family} {stream}, {worst}: temporary / (4.5 B/P D 4 + 4 block^2 4 bytes)", share, 1.0
        weak = {r["devices"]: r["temporary_mib"] for r in streamed if r["batch"] == 4096 * r["devices"] and r["width"] == 512}
        for fewest in (2, 4):
            some = [mib for devices, mib in weak.items() if devices >= fewest]
            if len(weak) > 2:
                what = f"4096 rows on each of {fewest} to {max(weak)} devices: largest / smallest temporary memory"
                yield f"{family} {stream}, {what}", max(some) / min(some), 1.02
    for row in rows:
        if row["dtype"] == "bfloat16":
            place = f"B={row['batch']} on {row['devices']} {row['device']}"
            yield f"{row['family']} {stream}, {place}: temporary MiB", row["temporary_mib"], 40 if row["family"] == "softmax" else 10


def general_bound(row, block=512):
    return 4.5 * row["batch"] / row["devices"] * row["width"] * 4 + 4 * block**2 * 4


def summary(rows):
    lines = []
    for what, figure, limit in bars(rows):
        verdict = "holds" if figure <= limit * (1 + 1e-6) else "falls short"
        lines.append(f"{verdict:11}  {figure:8.3f} <= {limit:<6}  {what}")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------ the run
def cases(devices):
    """What the process for this many devices measures: batch, width, and rounds of timing, none of them for what is only compiled."""
    case = lambda batch, width, rounds, **only: {"batch": batch, "width": width, "rounds": rounds, **only}  # noqa: E731
    if FLAGS.weak:
        return [case(4096 * devices, 512, 0, forms=STREAMS)]
    if FLAGS.quick:
        # For want of time the dearest are timed once, or not at all, and on one device only our forms are compiled for B=65536.
        once = [["softmax", "local rows"], ["softmax", "scan"], ["softmax", "Inf-CL"]]
        untimed = [["softmax", "all-gather"], ["constant keys", ""], ["NT-Xent", ""]]
        ours = [[family, "ours"] for family in ("softmax", "sigmoid", "queue (MoCo)", "NT-Xent")]
        return [case(4096, 512, 2, once=once, untimed=untimed), case(65536, 512, 0, **({"forms": ours} if devices == 1 else {}))]
    timed = [case(4096, width, FLAGS.rounds) for width in (256, 512, 768)] + [case(16384, 512, FLAGS.rounds)]
    return timed + [case(65536, width, 0) for width in (256, 512, 768)]


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    if FLAGS.task:
        task = json.loads(FLAGS.task)
        if task["devices"] > 1:
            cli.fake_devices(task["devices"])
        if FLAGS.keep_memory:
            cli.keep_memory()
        return work(task)
    mode = "topology" if FLAGS.topology else "weak" if FLAGS.weak else "quick" if FLAGS.quick else "full"
    about = {"run": mode, "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "cpu": processor()}
    about |= {"keep_memory": FLAGS.keep_memory}
    tasks = [{"devices": devices, "cases": cases(devices)} for devices in ((2, 4, 8, 16, 32, 64) if FLAGS.weak else (1, 8))]
    measured = compile_for_tpu(FLAGS.topology) if FLAGS.topology else itertools.chain.from_iterable(map(spawn, tasks))
    rows = []
    for row in measured:
        rows.append(row | about | ({"topology": FLAGS.topology} if FLAGS.topology else {}))
        keep(rows[-1:], FLAGS.out)
        if sys.stderr.isatty():
            print(f"\r{len(rows)} rows ", end="", file=sys.stderr)
    print(table(rows))
    print(f"\n{about['cpu']}, {rows[0]['device']}, jax {rows[0]['jax']}\n")
    print(summary(rows))
    if FLAGS.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    cli.command(main, keep=False)
