"""The mesh and the rules, on eight fake devices."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssljax import sharding
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
