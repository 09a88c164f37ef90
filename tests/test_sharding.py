"""The mesh and the rules, on eight fake devices."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ssljax import losses, sharding
from ssljax.errors import UserError

pytestmark = pytest.mark.quick


def test_minus_one_takes_what_is_left():
    assert dict(sharding.make_mesh({"data": -1, "fsdp": 2}, batch=16).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert dict(sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, batch=16).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    "sizes, batch, says",
    [
        ({"data": 3}, 24, "needs 3 devices, there are 8"),
        ({"data": 8}, 12, "config.batch=12 does not divide over data=8.*nearest that does is 8"),
        ({"data": -1, "fsdp": -1}, 8, "only one axis may be -1"),
        ({"data": 0}, 8, "config.mesh.data=0"),
        ({"model": 2}, 8, "config.mesh.model"),
    ],
)
def test_a_mesh_that_cannot_be_is_named(sizes, batch, says):
    with pytest.raises(UserError, match=says):
        sharding.make_mesh(sizes, batch=batch)


def shapes():
    return {
        "encoder": {
            "transformer": {"blocks": {"mlp": {"fc1": {"kernel": jax.ShapeDtypeStruct((64, 32, 128), np.float32)}}}},
            "norm": {"scale": jax.ShapeDtypeStruct((32,), np.float32)},
        },
        "head": {"kernel": jax.ShapeDtypeStruct((30, 512), np.float32)},
        "odd": jax.ShapeDtypeStruct((81, 81), np.float32),
    }


def specs(rules=(), **sizes):
    mesh = sharding.make_mesh(sizes, batch=8)
    return jax.tree.map(lambda s: s.spec, sharding.state_shardings(shapes(), mesh, rules))


def test_the_default_splits_the_largest_dimension_that_divides_and_never_the_layer_axis():
    got = specs(data=4, fsdp=2)
    assert got["encoder"]["transformer"]["blocks"]["mlp"]["fc1"]["kernel"] == P(None, None, "fsdp")
    assert got["encoder"]["norm"]["scale"] == P()  # too small to be worth a gather
    assert got["head"]["kernel"] == P(None, "fsdp")
    assert got["odd"] == P()  # 81 does not divide
    assert specs(data=8)["head"]["kernel"] == P()


def test_the_first_rule_that_matches_wins():
    rules = (("head/kernel", "-,tensor"), ("fc1/kernel", "-,fsdp,tensor"), ("kernel", "-"))
    got = specs(rules, data=2, fsdp=2, tensor=2)
    assert got["head"]["kernel"] == P(None, "tensor")
    assert got["encoder"]["transformer"]["blocks"]["mlp"]["fc1"]["kernel"] == P(None, "fsdp", "tensor")


def test_the_tensor_axis_splits_pairs_of_products_and_what_does_not_divide_stays_whole():
    got = specs(data=2, fsdp=2, tensor=2)
    assert got["encoder"]["transformer"]["blocks"]["mlp"]["fc1"]["kernel"] == P(None, "fsdp", "tensor")
    names = {
        "encoder/transformer/blocks/attn/qkv/kernel": ((12, 384, 3, 6, 64), P(None, "fsdp", None, "tensor")),
        "encoder/transformer/blocks/attn/proj/kernel": ((12, 6, 64, 384), P(None, "tensor", None, "fsdp")),
        "encoder/transformer/blocks/mlp/fc2/kernel": ((12, 1536, 384), P(None, "tensor", "fsdp")),
        "head/last_layer/kernel": ((256, 4096), P("fsdp", "tensor")),
        "prototypes": ((4096, 256), P("tensor", "fsdp")),
        "encoder/layer1_0/conv2/kernel": ((3, 3, 64, 256), P(None, None, "tensor", "fsdp")),
    }
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, batch=8)
    for name, (shape, spec) in names.items():
        for path in (name, f"teacher/{name}"):
            assert sharding.state_shardings({path: jax.ShapeDtypeStruct(shape, np.float32)}, mesh)[path].spec == spec, path
    odd = {"encoder/transformer/blocks/attn/qkv/kernel": jax.ShapeDtypeStruct((12, 384, 3, 3, 128), np.float32)}
    assert sharding.state_shardings(odd, mesh)[next(iter(odd))].spec == P(None, "fsdp")


@pytest.mark.parametrize("assign", ["dino", "sinkhorn"])
def test_scores_of_prototypes_are_never_gathered(assign):
    """DINO's head, loss and centre, and DINOv2's Sinkhorn: no device of eight holds more of the (B, K) scores than its own quarter of the
    rows and half of the prototypes, forward or backward."""
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, batch=64)
    b, d, k = 64, 8, 1000
    rows, table = NamedSharding(mesh, sharding.BATCH), NamedSharding(mesh, P("fsdp", "tensor"))

    def loss(kernel, z, teacher):
        student, target = (losses.normalise(x) @ kernel for x in (z, teacher))
        if assign == "dino":
            centre = losses.update_centre(jnp.zeros(k), target, 0.9)
            targets = losses.centred(target, centre, 0.04)
        else:
            targets = losses.sinkhorn(target, epsilon=0.05)
        return losses.across_crops(targets[None], student[None], temperature=0.1, pairs="all")

    arguments = [jax.ShapeDtypeStruct((d, k), jnp.float32, sharding=table)]
    arguments += [jax.ShapeDtypeStruct((b, d), jnp.float32, sharding=rows)] * 2
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(*arguments).compile().as_text()
    sizes = [math.prod(map(int, shape.split(","))) for shape in re.findall(r"f32\[([\d,]+)\]", text)]
    assert max(sizes) == b // 4 * k // 2


@pytest.mark.parametrize(
    "rule, says",
    [(("haed/", "fsdp"), "haed/.*matches no parameter"), (("head/", "model"), "names axis 'model'"), (("odd", "fsdp"), "odd of shape")],
)
def test_a_rule_that_cannot_be_is_named(rule, says):
    with pytest.raises(UserError, match=says):
        specs((rule,), data=4, fsdp=2)


def test_a_batch_lies_in_rows_over_both_data_axes():
    mesh = sharding.make_mesh({"data": 4, "fsdp": 2}, batch=16)
    batch = sharding.put_batch(mesh, {"id": np.arange(16), "image": np.zeros((16, 4, 4, 3), np.uint8)})
    assert [int(s.data[0]) for s in batch["id"].addressable_shards] == list(range(0, 16, 2))
    assert batch["image"].addressable_shards[0].data.shape == (2, 4, 4, 3)


Device = dataclasses.make_dataclass(
    "Device", ["id", "slice_index", "process_index", "platform", "device_kind", "core_on_chip", "coords"], frozen=True
)


def test_slices_are_joined_by_the_data_axis_alone():
    """Sixteen devices of two slices, as the TPU runtime describes them."""
    fields = dict(platform="tpu", device_kind="TPU v5 lite", core_on_chip=0)
    made = [Device(id=i, slice_index=i // 8, process_index=i // 4, coords=(i % 2, i // 2 % 4, 0), **fields) for i in range(16)]
    mesh = sharding.make_mesh({"data": 4, "fsdp": 2, "tensor": 2}, batch=16, devices=made)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    np.testing.assert_array_equal(slices, np.repeat([0, 1], 2)[:, None, None] * np.ones((1, 2, 2)))
    with pytest.raises(UserError, match="data=1 does not divide over the 2 slices"):
        sharding.make_mesh({"data": 1, "fsdp": 8, "tensor": 2}, batch=16, devices=made)


@pytest.mark.parametrize("slices", [1, 2])
def test_an_axis_may_take_a_part_of_the_torus(slices):
    """Eight of 4 x 4 x 4 chips are no whole axes of it; they should still be neighbours."""
    fields = dict(platform="tpu", device_kind="TPU v5p", core_on_chip=0)
    made = [
        Device(id=i, slice_index=i // 64, process_index=i // 4, coords=tuple(map(int, np.unravel_index(i % 64, (4, 4, 4)))), **fields)
        for i in range(64 * slices)
    ]
    mesh = sharding.make_mesh({"data": -1, "fsdp": 8}, batch=128, devices=made)
    assert mesh.devices.shape == (8 * slices, 8, 1) and len(set(mesh.devices.flat)) == 64 * slices
    for group in mesh.devices[:, :, 0]:
        places = np.array([device.coords for device in group])
        assert np.prod(np.ptp(places, axis=0) + 1) == 8 and len({device.slice_index for device in group}) == 1
