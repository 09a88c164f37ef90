"""The mesh, and the rules that say how parameters, optimizer state, extra and batches lie on it."""

import math
import re

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssljax import trees
from ssljax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))  # every leaf of a batch is split by its leading axis over both
# The dimension of a parameter that the tensor axis splits, counted from the last (Megatron-LM, Shoeybi et al. 2019, arXiv 1909.08053,
# section 3): of a pair of products the first by its outputs, the second by its inputs, so that a pair sends one sum. Prototypes and
# a decoder's words are split as they are counted: their logits stay where they are made. One that does not divide is not split.
TENSOR = (
    (r"attn/(qkv|kv|q|query|key|value)/(kernel|bias)$", -2),  # heads
    (r"attn/(proj|out)/kernel$", -3),
    (r"(mlp|head|projector|predictor)/(fc1/(kernel|bias)|bn1/(scale|bias))$", -1),
    (r"(mlp|head|projector|predictor)/fc2/kernel$", -2),
    (r"layer\d_\d+/(conv1/kernel|bn1/(scale|bias))$", -1),
    (r"layer\d_\d+/conv2/kernel$", -2),
    (r"(last_layer|decoder/out)/kernel$", -1),
    (r"(^|/)prototypes$", -2),
)


def platform():
    """What the program in hand is made for, "cpu", "gpu" or "tpu": that of the mesh of `jax.set_mesh`, which `ssljax.plan` makes of chips
    that are not there; where none is set, JAX's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def chip():
    """The kind of device that the program in hand is made for, as JAX names it: "TPU v5 lite", "NVIDIA H200", "cpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else jax.devices()[0].device_kind


def one_cpu():
    """Whether what is traced now is made for one CPU, the only device of the process."""
    return platform() == "cpu" and jax.device_count() == 1


def make_mesh(sizes, *, batch, devices=None):
    """{"data": -1, "fsdp": 1, "tensor": 1} -> Mesh. One axis may be -1: what is left. Raises UserError if it does not fit.

    batch: the global batch size, which the data axes must divide.
    """
    devices = jax.devices() if devices is None else devices
    check_axes(sizes)
    shape = [sizes.get(axis, 1) for axis in AXES]
    rest = math.prod(n for n in shape if n != -1)
    if -1 in shape:
        shape[shape.index(-1)] = max(len(devices) // rest, 1)
    if math.prod(shape) != len(devices):
        wanted = ", ".join(f"{axis}={n}" for axis, n in zip(AXES, shape, strict=True))
        raise UserError(f"config.mesh: {wanted} needs {math.prod(shape)} devices, there are {len(devices)}")
    if batch % (shape[0] * shape[1]):
        raise UserError(
            f"config.batch={batch} does not divide over data={shape[0]} x fsdp={shape[1]} devices; "
            f"the nearest that does is {max(batch // (shape[0] * shape[1]), 1) * shape[0] * shape[1]}"
        )
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    split = dict(allow_split_physical_axes=True)  # where no whole axes of the torus make one: fsdp=8 on 4x4x4
    if slices == 1:
        return Mesh(mesh_utils.create_device_mesh(shape, devices, **split), AXES, axis_types=types)
    if shape[0] % slices:
        raise UserError(f"config.mesh.data={shape[0]} does not divide over the {slices} slices: the other axes stay within a slice")
    # What is between slices is slow: of the data axis alone, outermost, which sends gradients and encodings and no weights.
    inside, across = (shape[0] // slices, *shape[1:]), (slices, 1, 1)
    return Mesh(mesh_utils.create_hybrid_device_mesh(inside, across, devices, **split), AXES, axis_types=types)


def check_axes(sizes):
    """Raises UserError for unknown axes and sizes that cannot be, without touching a device."""
    for axis, n in sizes.items():
        if axis not in AXES:
            raise UserError(f"config.mesh.{axis}: expected axes {', '.join(AXES)}")
        if not isinstance(n, int) or (n < 1 and n != -1):
            raise UserError(f"config.mesh.{axis}={n!r}: expected a number of devices, or -1 for all that are left")
    if sum(n == -1 for n in sizes.values()) > 1:
        raise UserError("config.mesh: only one axis may be -1")


def state_shardings(state, mesh, rules=()):
    """Tree of shapes -> tree of NamedSharding.

    rules: ((regex, axes), ...), first match wins (`re.search` on the leaf's name); axes is a string with one entry a dimension,
    e.g. "fsdp,tensor" or "-,-,fsdp" ("-": not split). A leaf that no rule names is split over tensor as TENSOR says, and over fsdp
    along the largest dimension that is left and divides, if it has at least 2**12 elements; the optimizer's moments and a teacher have
    the names and the fate of their parameters.
    """
    rules = tuple((pattern, _parse(axes, pattern)) for pattern, axes in rules)
    leaves = [name for name, _ in trees.names(state)]
    for pattern, _ in rules:
        if not any(re.search(pattern, name) for name in leaves):
            raise UserError(f"config.sharding: rule {pattern!r} matches no parameter; e.g. {', '.join(leaves[:3])}")

    def one(name, leaf):
        spec = trees.first_match(rules, name)
        if spec is None:
            return NamedSharding(mesh, _default(name, leaf.shape, mesh.shape["fsdp"], mesh.shape["tensor"]))
        for dim, axis in zip(leaf.shape, spec, strict=False):
            if axis and dim % math.prod(mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis)):
                raise UserError(f"config.sharding: {name} of shape {leaf.shape} does not divide over {spec}")
        return NamedSharding(mesh, PartitionSpec(*spec[: len(leaf.shape)]))

    return trees.map_names(one, state)


def _parse(axes, pattern):
    out = []
    for axis in axes.split(","):
        if axis in ("-", ""):
            out.append(None)
        elif axis in AXES:
            out.append(axis)
        else:
            raise UserError(f"config.sharding: rule {pattern!r} names axis {axis!r}; expected {', '.join(AXES)} or -")
    return out


def _default(name, shape, fsdp, tensor, smallest=2**12):
    axes = [None] * len(shape)
    dimension = trees.first_match(TENSOR, name) if tensor > 1 else None
    if dimension is not None and -dimension <= len(shape) and shape[dimension] % tensor == 0:
        axes[dimension] = "tensor"
    # The layer axis of stacked blocks stays whole: a scan reads one layer of it at a time.
    first = 1 if "blocks/" in name else 0
    candidates = [(dim, i) for i, dim in enumerate(shape) if i >= first and dim % fsdp == 0 and axes[i] is None]
    if fsdp > 1 and candidates and math.prod(shape) >= smallest:
        axes[max(candidates)[1]] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def replicated(mesh):
    """The sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(mesh, batch):
    """This process's rows (numpy, dict) -> global arrays, split by the leading axis over data and fsdp."""
    sharding = NamedSharding(mesh, BATCH)
    return {k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in batch.items()}
