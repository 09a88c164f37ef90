"""Images a second and MFU of one train step, against the same step in PyTorch where it is installed, in one interleaved run.

    python launch/bench/step.py                                     # every case, float32; ten minutes on two CPU cores
    python launch/bench/step.py --cases supervised-S --rounds 9
    python launch/bench/step.py --dtype bfloat16 --json             # on an accelerator: batches that fill one
    python launch/bench/step.py --cases simclr-S --augment --profile /tmp/trace      # where a step's time goes, kernel by kernel
    python launch/bench/step.py --topology h200:1 --dtype bfloat16  # of a chip that need not be there: memory and traffic
    bash launch/test_interop.sh && .venv-interop/bin/python launch/bench/step.py     # an environment with torch, timm and transformers

Synthetic uint8 views of 224 (and tokens) on the device; forward, backward, optimizer, teachers. The rivals (step_rivals.py) are timm's and
transformers' models with torch's fused AdamW, eager and, with --compile, under torch.compile. Rounds take turns; ratios are medians over
rounds, below 1 where ours is faster. MFU is of the chip's published peak; on a CPU of the rate of one large product, timed in the same
rounds. FLOPs are counted in the jaxpr. donated: the share of the state whose memory the step takes over for the new one.
"""

import collections
import json
import os
import pathlib
import statistics
import sys

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launch.bench import rows  # noqa: E402
from ssljax import cli, plan  # noqa: E402
from ssljax import config as configs  # noqa: E402
from ssljax.errors import UserError  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_list("cases", [], "of those below; empty: all", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 5, "rounds; each takes one step of ours and of every rival; 0: compile ours, run nothing", flag_values=FLAGS)
flags.DEFINE_integer("batch", 0, "images a step; 0: a case's own, on a CPU 2 to 16", flag_values=FLAGS)
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the products", flag_values=FLAGS)
flags.DEFINE_enum("remat", "none", ["none", "dots", "full"], "what the backward pass recomputes", flag_values=FLAGS)
flags.DEFINE_bool("rivals", True, "time PyTorch's steps as well", flag_values=FLAGS)
flags.DEFINE_bool("compile", False, "torch.compile as another rival", flag_values=FLAGS)
flags.DEFINE_bool("twice", False, "take three steps twice, from the start, and say whether all bits agree", flag_values=FLAGS)
flags.DEFINE_bool("augment", False, "make the views on the device, by the method's augmentations; no rivals", flag_values=FLAGS)
flags.DEFINE_string("topology", "", "h200:1, v5e:2x2, ...: what this chip's compiler says of the step; runs nothing", flag_values=FLAGS)
flags.DEFINE_string("profile", "", "write a profile of three steps of ours to this folder", flag_values=FLAGS)
flags.DEFINE_string("out", str(ROOT / "launch/bench/results/step.jsonl"), "rows are appended here", flag_values=FLAGS)
flags.DEFINE_bool("json", False, "end with one JSON line of the whole table", flag_values=FLAGS)

CASES = {  # name: images a step on a CPU, on an accelerator of 80 GB and more
    "supervised-S": (16, 512), "supervised-B": (8, 256), "supervised-L": (2, 256), "simclr-S": (8, 256), "dino-S": (4, 64),
    "mae-L": (4, 256), "mae-L-unmasked": (2, 128), "siglip-B": (8, 256),
}  # fmt: skip
LENGTH, WORDS = 64, 32_000


def config_of(case, batch, dtype, remat, augmented):
    """The ConfigDict of a case: what its rival computes too."""
    from ssljax.augment import recipes
    from ssljax.models import text, vit

    method, _, size = case.partition("-")
    size, _, kind = size.partition("-")
    encoder = vit.size(f"{size}/16", dtype=dtype, remat=remat)
    made = {
        "supervised": dict(name="supervised", encoder=dict(encoder, out=1000, out_bias=True)),
        "simclr": dict(name="simclr", encoder=encoder, projector=dict(name="mlp", hidden=2048, out=128, layers=2, dtype=dtype)),
        "dino": dict(
            name="dino", encoder=encoder, head=dict(name="dino_head", hidden=2048, bottleneck=256, out=65536, layers=3, dtype=dtype)
        ),
        "mae": dict(
            name="mae", mask_ratio=0.0 if kind else 0.75, encoder=dict(encoder, position="sincos_mae"),
            decoder=dict(name="mae_decoder", width=512, depth=8, heads=16, mlp_dim=2048, dtype=dtype, remat=remat),
        ),
        "siglip": dict(
            name="siglip", encoder=dict(encoder, pool="map", class_token=False, activation="gelu_tanh"),
            text=text.size("B", vocab_size=WORDS, length=LENGTH, out=768, out_bias=True, activation="gelu_tanh", dtype=dtype, remat=remat),
        ),
    }[method]  # fmt: skip
    groups = {"dino": recipes.make("dino", crops=8), "simclr": recipes.make("simclr")}.get(method, {"views": dict(count=1, size=224)})
    if not augmented:
        groups = {name: dict(count=group["count"], size=group["size"]) for name, group in groups.items()}
    data = dict(source="scenes/photo", image_size=224, crop="device" if augmented else "host")
    if method == "siglip":
        data |= dict(tokenizer=f"words:{WORDS}", caption="caption")
    return configs.make(
        steps=1000, batch=batch, method=made, augment=groups, data=data,
        optim=dict(name="adamw", lr=1e-4, weight_decay=0.05), mesh=dict(data=-1),
    )  # fmt: skip


def ours(config):
    """-> step() that ends when the device is done, the raw batch (numpy), what is known of the step before it runs, Program."""
    import jax
    import numpy as np

    from ssljax import metrics, program, sharding

    built, rng = configs.build(config), np.random.default_rng(0)
    shapes = plan.raw_shapes(built, config.batch)
    draw = lambda x: rng.integers(0, 256 if x.dtype == np.uint8 else 2, x.shape).astype(x.dtype)  # noqa: E731
    raw = {name: draw(x) for name, x in shapes.items()} | {"id": np.arange(config.batch, dtype=np.int32)}
    raw["valid"] = np.ones(config.batch, bool)
    if "text" in raw:
        raw["text"] = rng.integers(1, WORDS, raw["text"].shape).astype(np.int32)
    made = program.make(config, built, sharding.make_mesh(config.mesh.to_dict(), batch=config.batch), raw, examples=1_281_167)
    flops = metrics.count_flops(made.train_step, made.shapes, shapes)
    batch = made.put(raw)
    with jax.set_mesh(made.mesh):
        compiled = made.step.lower(made.shapes, batch).compile()
    state = None

    def step():
        nonlocal state
        state, found = made.step(made.init() if state is None else state, batch)
        jax.block_until_ready((state.params, found))

    return step, raw, {"flops": flops, **facts(compiled, made.shapes)}, made


def facts(compiled, state):
    """What the compiler says of the step: GiB of temporary memory, the share of the state donated, calls of cuDNN's flash attention."""
    import jax

    memory, size = compiled.memory_analysis(), sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    flash = compiled.as_text().count('custom_call_target="__cudnn$fmha')
    return {
        "temporary_gib": round(memory.temp_size_in_bytes / 2**30, 3), "donated": round(memory.alias_size_in_bytes / size, 3),
    } | ({"flash_calls": flash} if jax.default_backend() == "gpu" else {})  # fmt: skip


def repeats(made, raw):
    """Whether three steps from the start, taken twice, give the same bits."""
    import jax
    import jax.numpy as jnp

    batch, ends = made.put(raw), []
    for _ in range(2):
        state = made.init()
        for _ in range(3):
            state, _ = made.step(state, batch)
        ends.append((state.params, state.extra))
    return all(bool(jnp.array_equal(a, b, equal_nan=True)) for a, b in zip(*map(jax.tree.leaves, ends), strict=True))


def kernels(folder, steps):
    """A profile -> lines: the device's busiest operations in ms a step, how much of the time it computes, copies to the host a step.

    A GPU's streams alone; of other devices nothing."""
    import jax

    path = max(pathlib.Path(folder).glob("plugins/profile/*/*.xplane.pb"), key=lambda p: p.stat().st_mtime)
    times, copies, ends = collections.Counter(), 0, []
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines if plane.name.startswith("/device:GPU") else ():
            for event in line.events if line.name.startswith("Stream") else ():
                times[event.name] += event.duration_ns
                copies += "MemcpyD2H" in event.name
                ends.append((event.start_ns, event.start_ns + event.duration_ns))
    if not ends:
        return []
    busy, until = 0, 0
    for start, end in sorted(ends):
        busy, until = busy + max(end - max(start, until), 0), max(until, end)
    span = max(end for _, end in ends) - min(start for start, _ in ends)
    head = f"{span / steps / 1e6:.2f} ms a step, of which the device computes {busy / span:.1%}; {copies / steps:g} copies to the host"
    return [head] + [f"{ns / steps / 1e6:9.3f} ms  {ns / sum(times.values()):6.1%}  {name}" for name, ns in times.most_common(25)]


def product(dtype):
    """-> step() of one large product, its FLOPs: what a CPU's arithmetic is measured by."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((2048, 2048), dtype)
    multiply = jax.jit(lambda a: a @ a)
    return (lambda: multiply(x).block_until_ready()), 2 * 2048**3


def measure(case, batch, dtype):
    """Row of a case."""
    import jax

    from ssljax import metrics

    row = {"case": case, "dtype": dtype, "batch": batch, "remat": FLAGS.remat}
    step, raw, found, made = ours(config_of(case, batch, dtype, FLAGS.remat, FLAGS.augment))
    flops = found.pop("flops")
    if not FLAGS.rounds:
        return row | {"tflops": round(flops / 1e12, 3)} | found
    steps, theirs = {"ours": step}, {}
    if FLAGS.rivals and not FLAGS.augment:
        from launch.bench import step_rivals

        theirs = step_rivals.make(case, raw, dtype, FLAGS.compile)
        row |= {"rivals": step_rivals.versions()} if theirs else {}
    for name, function in theirs.items():
        try:
            function(), function()
        except Exception as error:  # of theirs, or of memory: our row is not lost with it
            row[name] = f"{type(error).__name__}: {error}"[:120]
        else:
            steps[name] = function
    peak = metrics.peak_flops(jax.devices()[0].device_kind, dtype)
    if peak is None:
        steps["product"], work = product(dtype)
    for name in {"ours", "product"} & steps.keys():
        steps[name](), steps[name]()  # compiles, allocates
    times = {name: [] for name in steps}
    for _ in range(FLAGS.rounds):
        for name, function in steps.items():
            times[name].append(rows.seconds(function))
    if FLAGS.profile:
        with jax.profiler.trace(FLAGS.profile):
            step(), step(), step()
        print("\n".join(kernels(FLAGS.profile, 3)), file=sys.stderr, flush=True)
    if peak is None:
        peak = work / statistics.median(times.pop("product"))
    mine = statistics.median(times["ours"])
    row |= {
        "seconds": round(mine, 4), "images_per_second": round(batch / mine, 2), "tflops": round(flops / 1e12, 3),
        "mfu": round(flops / mine / peak / jax.device_count(), 3), "programs": made.step._cache_size(),
    } | found  # fmt: skip
    if FLAGS.twice:
        step = steps = function = None  # the state that they hold goes
        row["same_bits"] = repeats(made, raw)
    for name in times:
        if name != "ours":
            row[name] = round(statistics.median(times[name]), 4)
            row[f"ours/{name}"] = round(statistics.median(a / b for a, b in zip(times["ours"], times[name], strict=True)), 3)
    return row


def planned(case, batch, dtype):
    """Row of a case on chips that need not be there."""
    found = plan.plan(config_of(case, batch, dtype, FLAGS.remat, FLAGS.augment), FLAGS.topology)
    return {
        "case": case, "dtype": dtype, "batch": batch, "remat": FLAGS.remat, "tflops": round(found["flops"] / 1e12, 3),
        "temporary_gib": round(found["hbm"]["temporaries"] / 2**30, 3), "traffic_gib": round(found["bytes"] / 2**30, 2),
        "bound_ms": {name: round(1e3 * seconds, 2) for name, seconds in found["seconds"].items()},
    }  # fmt: skip


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU's memory is the rivals' too
    import jax

    if wrong := [case for case in FLAGS.cases if case not in CASES]:
        raise UserError(f"--cases {','.join(wrong)}: expected some of {', '.join(CASES)}")
    if FLAGS.topology:
        plan.open_no_chip()
        if plan.devices_of(FLAGS.topology)[0] is None:
            raise UserError(f"--topology {FLAGS.topology}: jax[cuda13], which has its compiler, is not installed")
    else:
        jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
    table = []
    for case in FLAGS.cases or CASES:
        batch = FLAGS.batch or CASES[case][bool(FLAGS.topology) or jax.default_backend() != "cpu"]
        row = (planned if FLAGS.topology else measure)(case, batch, FLAGS.dtype) | ({"augment": True} if FLAGS.augment else {})
        table.append(row | rows.origin() | ({"device": FLAGS.topology} if FLAGS.topology else {}))
        rows.keep(table[-1:], FLAGS.out)
        print(json.dumps(table[-1]), file=sys.stderr, flush=True)
    names = list(dict.fromkeys(name for row in table for name in row if name.startswith("ours/")))
    timed = ("temporary_gib", "traffic_gib", "bound_ms") if FLAGS.topology else ("seconds", "images_per_second", "mfu")
    head = ("case", "dtype", "batch", *timed, *names)
    print(rows.markdown(head, [[str(row.get(name, "")) for name in head] for row in table]))
    first = table[0]
    print(f"\n{first['device']}, {first['cpu']}, jax {first['jax']}, {first.get('rivals', 'no rivals')}")
    if FLAGS.json:
        print(json.dumps(table))


if __name__ == "__main__":
    cli.command(main)
