"""Will it fit, and what will bound it? Compiles a config's real train step for chips that need not be there.

python -m ssljax.plan --config configs/siglip_vitb16_webimages.py --topology v5e:16x16
python -m ssljax.plan --config configs/dinov2_vitl16_imagenet.py --topology v5p:4x4x4 --mesh data=16,fsdp=4 --batch 2048
python -m ssljax.plan --config configs/mae_vitb16_imagenet.py --topology v4:8x8x8 --search --json
python -m ssljax.plan --config configs/siglip_vitb16_webimages.py --topology 2*v5e:16x16      # two slices; data=2 between them
python -m ssljax.plan --config configs/simclr_resnet50_imagenet.py --topology v5e:8x8 --quick   # about, in a fifth of the time
python -m ssljax.plan --config configs/clip_vitb32_webimages.py --topology v5e:16x16 --top 10   # and what sends and moves the most

python -m ssljax.plan --config configs/mae_vitb16_imagenet.py --topology h200:8                # GPUs of a host; h100:64: of eight hosts

TPU v4, v5e, v5p, v6e and tpu7x, by the TPU compiler of the package libtpu; A100, H100, H200 and B200, by the GPU compiler of
jax[cuda13]; `bash launch/plan.sh` makes an environment for either, and neither opens a chip. Without jax[cuda13] a plan for GPUs has the
state's exact bytes and FLOPs, and no activations. Times are bounds of a chip that does all at once at its peak; a step takes longer.
"""

import dataclasses
import functools
import json
import math
import os
import re

from absl import flags

from ssljax import cli
from ssljax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("topology", "", "v5e:16x16, v4:8x8x8, 2*v5e:16x16 (two slices), h100:64 (hosts of eight), ...", flag_values=FLAGS)
flags.DEFINE_string("mesh", "", "data=64,fsdp=4,tensor=1; empty: the config's", flag_values=FLAGS)
flags.DEFINE_integer("batch", 0, "global batch; 0: the config's", flag_values=FLAGS)
flags.DEFINE_bool("search", False, "where it does not fit: recompute more, then halve the batch", flag_values=FLAGS)
flags.DEFINE_bool("quick", False, "do not let the compiler work hard: memory to a fifth or so, no HBM traffic", flag_values=FLAGS)
flags.DEFINE_integer("top", 0, "list so many places that send most, and that move most in HBM", flag_values=FLAGS)
flags.DEFINE_bool("json", False, "end with one JSON line of the plan", flag_values=FLAGS)

GIB = 2**30
# name: HBM (GiB), HBM bandwidth (GB/s), bandwidth to other chips (GB/s, all links of a chip one way), device kind as JAX spells it.
# Google Cloud's system architecture pages; NVIDIA's datasheets. A device of tpu7x is half a chip.
CHIPS = {
    "v4": (32, 1228, 150, "TPU v4"), "v5e": (16, 819, 100, "TPU v5 lite"), "v5p": (95, 2765, 300, "TPU v5p"),
    "v6e": (32, 1640, 224, "TPU v6 lite"), "tpu7x": (96, 3690, 300, "TPU7x"),
    "a100": (80, 2039, 300, "A100"), "h100": (80, 3350, 450, "H100"), "h200": (141, 4800, 450, "H200"), "b200": (180, 8000, 900, "B200"),
}  # fmt: skip
# What a GPU's compiler asks for: compute capability (x.0), multiprocessors, float32 units and KiB of shared memory of each, MiB of L2,
# GHz; from NVIDIA's architecture white papers and tuning guides.
GPUS = {
    "a100": (8, 108, 64, 164, 40, 1.41), "h100": (9, 132, 128, 228, 50, 1.98), "h200": (9, 132, 128, 228, 50, 1.98),
    "b200": (10, 148, 128, 228, 126, 1.97),
}  # fmt: skip
HOST = 8  # GPUs of one host, where a topology does not say otherwise
UNTUNED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}  # kernels cannot be tried out: products are cuBLAS's
RESERVED = 0.03  # of a chip's HBM, which the runtime keeps
TAKEN = 0.75  # of a GPU's, what JAX takes when it starts, and all that it gives
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def open_no_chip():
    """Before JAX starts: the compilers of chips compile, and what chips this machine has stay closed."""
    import jax

    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    jax.config.update("jax_platforms", "cpu")  # JAX, if imported, has read its variables


def parts_of(topology):
    """ "2*v5e:16x16" -> slices, chip, shape: 2, "v5e", (16, 16). Raises UserError."""
    found = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", topology)
    if not found or found[2] not in CHIPS or (found[1] and found[2] in GPUS):
        raise UserError(
            f"--topology {topology!r}: expected CHIP:SHAPE, e.g. v5e:16x16, h100:64, or 2*v5e:16x16 for two slices of a TPU, with CHIP one "
            f"of {', '.join(CHIPS)}"
        )
    return int(found[1] or 1), found[2], tuple(map(int, found[3].split("x")))


def devices_of(topology):
    """ "v5e:16x16" -> devices that need not be there, the chip's name, their number; None for the first where it is a GPU whose compiler
    is not installed. Raises UserError."""
    from jax.experimental import topologies

    slices, name, shape = parts_of(topology)
    if name in GPUS:
        count = math.prod(shape)
        hosts, each = shape if len(shape) == 2 else (count // HOST, HOST) if count % HOST == 0 else (1, count)
        try:
            found = topologies.get_topology_desc("", "cuda", target_config=described(name), topology=f"1x{hosts}x{each}").devices
        except NotImplementedError:  # no such plugin
            found = None
        return found, name, count
    more = {"num_slices": slices} if slices > 1 else {}
    more |= {"chip_config_name": "megacore"} if name == "v4" else {}  # else its two cores are two devices, as they are used nowhere
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.rpartition("*")[2], **more).devices
    except Exception as error:  # of several types, by version
        raise UserError(f"--topology {topology}: {error}. It needs libtpu: bash launch/plan.sh ... has it") from None
    return found, name, len(found)


def described(name):
    """A GPU as its compiler wants it described, an XLA GpuTargetConfigProto in text."""
    capability, cores, units, shared, cache, clock = GPUS[name]
    hbm, bandwidth, _, kind = CHIPS[name]
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {capability} }}
  core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: {48 * 2**10} shared_memory_per_core: {shared * 2**10} shared_memory_per_block_optin: {(shared - 1) * 2**10}
  memory_bandwidth: {bandwidth * 10**9} device_memory_size: {hbm * GIB} l2_cache_size: {cache * 2**20}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 }}
device_description_str: "NVIDIA {kind}"
"""


def raw_shapes(built, batch):
    """A raw global batch as the host gives it: {name: ShapeDtypeStruct}."""
    import jax
    import numpy as np

    from ssljax import program

    two = program.example(built)
    if built.data.crop == "host":
        two.pop("image")
        two |= {name: np.zeros((2, g.count, g.size, g.size, 3), np.uint8) for name, g in built.groups.items()}
        two |= {f"{name}_box": np.zeros((2, g.count, 4), np.float32) for name, g in built.groups.items() if g.boxes}
    return {name: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for name, x in two.items()}


def plan(config, topology, examples=1_281_167, quick=False, top=0):
    """-> the plan's figures (dict): bytes a device by kind, FLOPs, traffic, collectives, bounds, whether it fits.

    quick: compile at the least effort. Less is fused, so that the traffic of HBM is not the real program's, and is left out; temporaries
    are about the real one's (eight ResNets held 0.83 to 1.16 times in all what their quick plans said, one with a bank 1.7 times).
    top: so many of the places in the program that move most (`largest`)."""
    import jax
    from jax.sharding import NamedSharding

    from ssljax import config as configs
    from ssljax import metrics, program, sharding

    devices, chip, count = devices_of(topology)
    hbm, bandwidth, links, kind = CHIPS[chip]
    built = configs.build(config)
    stand_ins = devices is None  # fake CPU devices, which nothing is compiled for
    mesh = sharding.make_mesh(config.mesh.to_dict(), batch=config.batch, devices=jax.devices()[:count] if stand_ins else list(devices))
    raw = raw_shapes(built, config.batch)
    run = program.make(config, built, mesh, raw, examples)
    batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=NamedSharding(mesh, sharding.BATCH)) for k, v in raw.items()}
    with jax.set_mesh(mesh):
        flops = metrics.count_flops(run.train_step, run.shapes, raw) / count
        out = {"config": config.method.name, "topology": topology, "chips": count, "mesh": dict(mesh.shape), "batch": config.batch}
        out |= {"hbm": {name: share(getattr(run.shapes, field)) for name, field in KINDS.items()} | {"batch": share(batch)}}
        lowered = None if stand_ins else run.step.lower(run.shapes, batch)
    options = {"exec_time_optimization_effort": -1.0} if quick else {}
    compiled = None if lowered is None else lowered.compile(compiler_options=options | (UNTUNED if chip in GPUS else {}))
    out["flops"] = flops
    dtype = getattr(built.method.encoder, "dtype", "float32")
    peak = metrics.peak_flops(kind, dtype)
    seconds = {f"{dtype} products": flops / peak}
    if compiled is not None:
        memory = compiled.memory_analysis()
        out["hbm"]["temporaries"] = memory.temp_size_in_bytes
        out["hbm"]["results beside the state"] = max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0)
        out["arguments"] = memory.argument_size_in_bytes
        text = compiled.as_text()
        moved, out["collectives"] = traffic(text)
        if top:
            out["largest"] = {kind: rows for kind, rows in largest(text, top).items() if kind == "links" or not quick}
        if not quick:
            out |= {"bytes": moved, "intensity": flops / max(moved, 1), "ridge": peak / (bandwidth * 1e9)}
            seconds["HBM"] = moved / (bandwidth * 1e9)
        seconds["links"] = sum(out["collectives"].values()) / (links * 1e9)
    out["total"] = sum(out["hbm"].values())
    out["capacity"] = hbm * GIB
    out["fits"] = out["total"] <= hbm * GIB * (1 - RESERVED)
    out["seconds"] = seconds
    out["bound"] = max(seconds, key=seconds.get)
    out["images_per_second"] = config.batch / max(seconds.values())
    return out


KINDS = {"parameters": "params", "optimizer": "opt", "teacher, statistics, queues": "extra"}


def share(tree):
    """Bytes of a tree of shapes with shardings that one device holds."""
    import jax
    import numpy as np

    leaves = [x for x in jax.tree.leaves(tree) if hasattr(x, "sharding")]
    size = lambda x: 8 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else np.dtype(x.dtype).itemsize  # noqa: E731
    return int(sum(math.prod(x.sharding.shard_shape(x.shape)) * size(x) for x in leaves))


BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}


def traffic(text):
    """Optimised HLO -> bytes that its instructions read and write in HBM, bytes that a device sends for each kind of collective.

    A loop's body counts as often as it is run, where that is written. What is inside a fusion never leaves the chip but for its
    collectives; what the compiler keeps in a TPU's memory on the chip (VMEM) counts where it is fetched and put back, by the bytes that
    its tiles take, whose sides are padded to 8 and 128. Of n devices in a ring that hold B bytes in the end, a gather sends
    B (n - 1) / n, a scattered sum the same of what it is given, a sum twice that (Patarasu and Yuan 2009)."""
    moved, sent = 0.0, dict.fromkeys(COLLECTIVES, 0.0)
    for _, moves, sends in _run(_Text(text)):
        moved += moves
        for kind, size in sends:
            sent[kind] += size
    return moved, {kind: size for kind, size in sent.items() if size}


LONG = 160  # characters


def largest(text, count):
    """Optimised HLO -> what moves most: {"HBM": [[bytes, where in the program], ...], "links": ...}, `count` of each.

    Where: the path that JAX writes down for an instruction, of modules and transformations, and what the instruction does there."""
    found = {"HBM": {}, "links": {}}
    for row, moves, sends in _run(_Text(text)):
        for kind, what, size in [("HBM", row.operation, moves)] + [("links", *sent) for sent in sends]:
            origin = row.origin or row.name
            where = f"{origin if len(origin) < LONG else origin[:LONG] + ' ...'}: {what}"  # of what is sent together all are named
            found[kind][where] = found[kind].get(where, 0.0) + size
    order = lambda sizes: sorted(([size, where] for where, size in sizes.items() if size), reverse=True)[:count]  # noqa: E731
    return {kind: order(sizes) for kind, sizes in found.items()}


def _run(program):
    """-> (instruction, bytes of HBM that it moves, [(kind of collective, bytes sent)]) of each, over all the times that it is run."""

    def walk(computation, times):
        for row in program.computations.get(computation, {}).values():
            if row.operation == "while":
                yield from walk(row.named("body"), times * program.turns(row))
            elif row.operation == "conditional":
                branches = row.named("branch_computations") or row.named("true_computation")
                yield from walk(branches.split(",")[0].strip(" %"), times)
            elif row.operation == "call":
                yield from walk(row.named("to_apply"), times)
            else:
                yield row, times * program.moves(row), [(kind, times * size) for kind, size in program.sends(row)]

    yield from walk(program.entry, 1)


@dataclasses.dataclass(frozen=True)
class _Row:
    """An instruction of HLO: %name = shape operation(operands), attributes."""

    name: str
    shape: str
    operation: str
    operands: tuple
    rest: str

    def named(self, attribute):
        """The computation, or list of them, that an attribute names; "" if there is none."""
        found = re.search(rf"{attribute}=(?:%([\w.-]+)|\{{([^}}]*)\}}|([\w.-]+))", self.rest)
        return next(filter(None, found.groups())) if found else ""

    @property
    def origin(self):
        """Where in the program it comes from, "" if that is not written."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def goes_on(self):
        """Whether this is what a fusion does of a collective that an earlier one began, where it is counted, once and whole. TPUs take some
        in steps, beside the products of many fusions, which hand on what is in flight."""
        return re.search(r'"flag_start":"\d', self.rest) is not None


class _Text:
    """Optimised HLO, read."""

    FREE = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "iota", "partition-id", "replica-id")
    FETCHES = ("copy-start", "slice-start", "dynamic-slice-start")  # from HBM to the memory on the chip, or back
    NAMES = ('custom_call_target="AllocateBuffer"', 'custom_call_target="ConcatBitcast"')  # which only name memory

    def __init__(self, text):
        self.computations, self.roots, name = {}, {}, None
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():  # long tuples have remarks, "/*index=5*/"
            if header := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
                name = header[2]
                self.computations[name] = {}
                if header[1]:
                    self.entry = name
            elif name and (found := re.match(r"\s+(ROOT )?%?(\S+) = (\([^=]*?\)|\S+) ([a-z-]+)\((.*)", line)):
                root, own, shape, operation, rest = found.groups()
                if 'custom_call_target="__cu' in rest:  # a GPU's library; what it is given to work in is among what it returns
                    shape = re.sub(r", [su]8\[\d+\](\{0\})?\)$", ")", shape)
                row = _Row(own, shape, operation, tuple(re.findall(r"%([\w.-]+)", rest.split("), ")[0])), rest)
                self.computations[name][own] = row
                if root:
                    self.roots[name] = row
        self.arrays = {row.name: list(arrays_of(row.shape)) for rows in self.computations.values() for row in rows.values()}
        self.taken = {name: sum(array.taken for array in arrays) for name, arrays in self.arrays.items()}  # anywhere
        self.held = {name: sum(array.held for array in arrays) for name, arrays in self.arrays.items()}  # in HBM

    def turns(self, row):
        """Of a loop: what CPUs' and GPUs' compilers note; of TPUs', the number that its condition counts to."""
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', row.rest):
            return int(found[1])
        rows = list(self.computations.get(row.named("condition"), {}).values())
        rows += [inner for one in rows for inner in self.computations.get(one.named("calls"), {}).values()]
        counts = [int(found[1]) for one in rows if one.operation == "constant" and (found := re.match(r"(\d+)\)", one.rest))]
        return counts[0] if len(counts) == 1 and any("direction=LT" in one.rest for one in rows) else 1

    def sends(self, row):
        """[(kind, bytes)] of an instruction's collectives, those in a fusion included."""
        if row.goes_on:
            return []
        if called := row.named("calls"):
            inner = [one for each in self.computations.get(called, {}).values() for one in self.sends(each)]
            if "all-reduce-scatter" in called:  # as TPUs scatter a sum
                inner = [("reduce-scatter", size / 2) for _, size in inner]
            return inner
        kind = row.operation.removesuffix("-start")
        if kind not in COLLECTIVES:
            return []
        parts, n = [array.size for array in self.arrays[row.name]], _group(row.rest)
        if row.operation.endswith("-start") and kind != "all-reduce":  # what goes in, what comes out, signals
            parts = [max(parts)] if kind == "collective-permute" else parts[len(parts) // 2 :]
        factor = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1}.get(kind, (n - 1) / n)
        return [(kind, sum(parts) * factor)]

    def moves(self, row):
        """Bytes of HBM that an instruction reads and writes."""
        if row.operation in self.FREE or row.operation.endswith("-done") or any(name in row.rest for name in self.NAMES):
            return 0
        if row.operation in self.FETCHES:  # what goes in, or what it is a slice of, beside what comes out
            ends = self.arrays[row.name][:2]
            return min(end.taken for end in ends) * sum(end.in_hbm for end in ends)
        if row.operation.endswith("-start"):
            return self.held[row.name] * (2 if row.operation == "all-reduce-start" else 1)  # others' shapes have what goes in
        operands = [self.held.get(name, 0) for name in row.operands]
        if row.operation == "dynamic-slice":
            return min(self.taken[row.name], operands[0]) + self.held[row.name]
        if row.operation == "dynamic-update-slice":
            return min(self.taken.get(row.operands[1], 0), self.held[row.name]) + operands[1]
        if row.operation == "gather":
            return min(self.taken[row.name], operands[0]) + operands[1] + self.held[row.name]
        if row.operation == "scatter" and len(row.operands) == 3:
            return min(self.taken.get(row.operands[2], 0), self.held[row.name]) + operands[1] + operands[2]
        called = row.named("calls")
        if called not in self.computations:
            return self.held[row.name] + sum(operands)
        if "AsyncCollectiveDone" in self.roots[called].rest:
            return 0
        written = map(min, (array.held for array in self.arrays[row.name]), self.written(self.roots[called], called))
        return sum(written) + sum(min(size, self.read(called, i)) for i, size in enumerate(operands))

    def read(self, computation, index):
        """Bytes that a fusion reads of its operand: of a stack that it slices, the slices; of a bank that it gathers from, the rows."""
        rows = self.computations[computation]
        own = next((row for row in rows.values() if row.operation == "parameter" and row.rest.startswith(f"{index})")), None)
        return 0 if own is None else min(self._used(rows, own.name), self.taken[own.name])

    def _used(self, rows, name):
        total = 0
        for row in rows.values():
            if name not in row.operands or row.operation == "tuple" or row.goes_on:
                continue
            if row.operation == "bitcast":
                total += self._used(rows, row.name)
            elif row.operation in ("dynamic-slice", "gather") and row.operands[0] == name:
                total += self.taken[row.name]
            elif row.operation in ("dynamic-update-slice", "scatter") and row.operands[0] == name:
                pass  # written in place
            elif row.named("calls") in self.computations:
                total += sum(self.read(row.named("calls"), i) for i, operand in enumerate(row.operands) if operand == name)
            else:
                total += self.taken[name]
        return total

    def written(self, root, computation):
        """Bytes of each array that a fusion writes: of a stack or a bank that it updates in place, the update."""
        rows = self.computations[computation]
        if root.operation == "tuple":
            return [size for name in root.operands for size in self.written(rows[name], computation)]
        if root.operation == "parameter" or root.goes_on:  # handed on
            return [0] * len(self.arrays[root.name])
        if root.operation == "bitcast":
            return self.written(rows[root.operands[0]], computation)
        if root.operation == "dynamic-update-slice":
            return [self.taken[root.operands[1]]]
        if root.operation == "scatter" and rows[root.operands[0]].operation == "parameter":  # not into zeros of its own making
            return [self.taken[root.operands[2]]]
        if (called := root.named("calls")) in self.computations:
            return self.written(self.roots[called], called)
        return [array.taken for array in self.arrays[root.name]]


def _group(rest):
    """How many devices a collective is between, by its replica_groups: {{0,1},{2,3}}, [2,4]<=[8], or mesh['a'=2,'b'=4] {'b'}."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(found[1])
    found = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    return len(found[1].split(",")) if found else 2


@dataclasses.dataclass(frozen=True)
class _Array:
    """An array of an HLO result: its sides; size: bytes of its numbers; taken: with what pads its tiles; in_hbm: or in another memory."""

    sides: tuple
    size: int
    taken: int
    in_hbm: bool

    @property
    def held(self):
        return self.taken if self.in_hbm else 0


def arrays_of(shape):
    """ "(bf16[8,100]{1,0:T(8,128)S(1)}, f32[])" -> an _Array of each."""
    for dtype, dimensions, order, layout in re.findall(r"(\w+)\[([\d,]*)\](?:\{([\d,]*):?([^}]*)\})?", shape):
        sides = [int(side) for side in dimensions.split(",") if side]
        padded, tile = list(sides), re.match(r"T\(([\d,]+)\)", layout)
        for axis, side in zip(order.split(","), reversed(tile[1].split(",")) if tile and sides else (), strict=False):  # innermost first
            padded[int(axis)] = -(-sides[int(axis)] // int(side)) * int(side)
        width = BYTES.get(dtype, 4)
        yield _Array(tuple(sides), width * math.prod(sides), width * math.prod(padded), "S(" not in layout)


def search(config, topology, say, **options):
    """The plan with the least recomputation, then the largest batch, that fits; says why at each step."""
    from ssljax.models.layers import REMAT

    found = plan(config, topology, **options)
    say(found)
    policies = list(REMAT)
    towers = [tower for tower in ("encoder", "text", "decoder") if tower in config.method and "remat" in config.method[tower]]
    for policy in policies[1:]:
        if found["fits"] or not towers:
            break
        if all(policies.index(config.method[tower].remat) >= policies.index(policy) for tower in towers):
            continue
        for tower in towers:
            config.method[tower].remat = policy
        print(f"{found['total'] / GIB:.1f} of {found['capacity'] / GIB:.0f} GiB: does not fit; with remat={policy}:")
        found = plan(config, topology, **options)
        say(found)
    shards = found["mesh"]["data"] * found["mesh"]["fsdp"]
    while not found["fits"] and config.batch % (2 * shards) == 0:
        config.batch //= 2
        print(f"{found['total'] / GIB:.1f} of {found['capacity'] / GIB:.0f} GiB: does not fit; with half the batch, {config.batch}:")
        found = plan(config, topology, **options)
        say(found)
    if not found["fits"]:
        raise UserError(
            f"{found['total'] / GIB:.1f} GiB at batch {config.batch}, of which {state(found) / GIB:.1f} are the state: more chips, "
            f"or more of --mesh fsdp={2 * found['mesh']['fsdp']}"
        )
    return found


def state(found):
    return sum(found["hbm"][name] for name in KINDS)


def tell(found):
    """The plan on the terminal."""
    print(f"{found['config']}: batch {found['batch']} on {found['topology']}, {found['chips']} devices, mesh "
          + ", ".join(f"{axis}={n}" for axis, n in found["mesh"].items()))  # fmt: skip
    for name, size in found["hbm"].items():
        print(f"  {name:28} {size / 2**20:10.1f} MiB a device")
    verdict = "fits" if found["fits"] else "DOES NOT FIT"
    verdict += "" if "temporaries" in found["hbm"] else ", activations not counted: jax[cuda13] has the compiler; bash launch/plan.sh"
    if parts_of(found["topology"])[1] in GPUS and found["fits"] and found["total"] > TAKEN * found["capacity"]:
        verdict += f", where JAX takes more than its {TAKEN:.0%}: XLA_PYTHON_CLIENT_MEM_FRACTION={1 - RESERVED}"
    print(f"  {'in all':28} {found['total'] / 2**20:10.1f} MiB of {found['capacity'] / 2**20:.0f}: {verdict}")
    print(f"  {found['flops'] / 1e12:.3f} TFLOPs a device and step")
    if "bytes" in found:
        print(f"  {found['bytes'] / GIB:.2f} GiB of HBM traffic: {found['intensity']:.0f} FLOPs a byte; ridge: {found['ridge']:.0f}")
    for kind, size in found.get("collectives", {}).items():
        print(f"  {kind:28} {size / 2**20:10.1f} MiB a device and step")
    times = ", ".join(f"{name} {1e3 * s:.2f} ms" for name, s in found["seconds"].items())
    for kind, rows in found.get("largest", {}).items():
        for size, where in rows:
            print(f"  {kind:5} {size / 2**20:10.1f} MiB  {where}")
    print(f"  bounds: {times}; so {found['bound']} bounds it, at most {found['images_per_second']:,.0f} images/s")


def main(argv):
    open_no_chip()
    config = cli.parse_config(argv, FLAGS, __doc__)
    if not FLAGS.topology:
        raise UserError(f"--topology is missing: CHIP:SHAPE, e.g. v5e:16x16, with CHIP one of {', '.join(CHIPS)}")
    for item in filter(None, FLAGS.mesh.split(",")):
        axis, _, n = item.partition("=")
        if axis not in config.mesh or not re.fullmatch(r"-?\d+", n):
            raise UserError(f"--mesh {FLAGS.mesh!r}: expected data=N,fsdp=N,tensor=N, one of them -1")
        config.mesh[axis] = int(n)
    config.batch = FLAGS.batch or config.batch
    devices, _, count = devices_of(FLAGS.topology)
    if devices is None:
        cli.fake_devices(count)
    make = functools.partial(search, say=tell) if FLAGS.search else plan
    found = make(config, FLAGS.topology, quick=FLAGS.quick, top=FLAGS.top)
    if not FLAGS.search:
        tell(found)
    if FLAGS.json:
        print(json.dumps(found))


if __name__ == "__main__":
    cli.command(main)
