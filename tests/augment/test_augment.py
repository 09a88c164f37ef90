"""The whole augmentation of a batch: keys, groups, probabilities a view, sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import augment
from ssljax.augment import Group
from ssljax.errors import UserError

pytestmark = pytest.mark.quick


def test_solarize_inverts_the_bright_half_and_probabilities_are_per_view(picture):
    groups = {"views": Group(count=2, size=8, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, solarize=(0.0, 1.0))}
    image = picture(8, 8, 2)[None]
    raw = {"image": image, "id": np.zeros(1, np.int32), "epoch": np.zeros(1, np.int32), "valid": np.ones(1, bool)}
    out = augment.make(groups, seed=0, mean=(0.0,) * 3, std=(1.0,) * 3)(raw)["views"]
    x = image[0] / 255.0
    np.testing.assert_allclose(out[0, 0], x, atol=1e-5)
    np.testing.assert_allclose(out[0, 1], np.where(x >= 0.5, 1 - x, x), atol=1e-5)


def test_host_crops_and_device_crops_reach_the_same_photometrics():
    groups = {"views": Group(count=2, size=8, brightness=0.4), "crops": Group(count=3, size=4)}
    make = jax.jit(augment.make(groups, seed=1, mean=(0.5,) * 3, std=(0.5,) * 3))
    ids = {"id": np.arange(4, dtype=np.int32), "epoch": np.zeros(4, np.int32), "valid": np.ones(4, bool)}
    host = make({"views": np.zeros((4, 2, 8, 8, 3), np.uint8), "crops": np.zeros((4, 3, 4, 4, 3), np.uint8), **ids})
    device = make({"image": np.zeros((4, 16, 16, 3), np.uint8), **ids})
    for name in groups:
        np.testing.assert_array_equal(host[name], device[name])
        assert host[name].dtype == jnp.float32


def test_views_change_with_epoch_seed_and_example(picture):
    groups = {"views": Group(count=2, size=8, scale=(0.2, 1.0))}
    image = np.stack([picture(16, 16, 5)] * 2)

    def views(seed, epoch, ids):
        raw = {"image": image, "id": np.int32(ids), "epoch": np.int32([epoch] * 2), "valid": np.ones(2, bool)}
        return np.asarray(augment.make(groups, seed=seed, mean=(0.0,) * 3, std=(1.0,) * 3)(raw)["views"])

    base = views(0, 0, [1, 2])
    assert (base == views(0, 0, [1, 2])).all()
    assert (base[0, 0] != base[0, 1]).any() and (base[0] != base[1]).any()
    for other in (views(1, 0, [1, 2]), views(0, 1, [1, 2]), views(0, 0, [3, 4])):
        assert (base != other).any()


EVERYTHING = dict(
    brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, grey=0.2, blur=(1.0, 0.1), solarize=(0.0, 0.2), posterize=0.2, equalize=0.2,
    autocontrast=0.2, invert=(0.1, 0.0), sharpen=0.2, rand_augment=(1, 9), auto_augment=True, erase=0.25,
)  # fmt: skip


@pytest.mark.thorough
def test_every_operation_runs_sharded_without_a_transfer_and_views_do_not_depend_on_the_batch(picture):
    groups = {"views": Group(count=2, size=12, **EVERYTHING)}
    raw = {
        "image": np.stack([picture(16, 16, i) for i in range(8)]),
        "id": np.arange(8, dtype=np.int32),
        "epoch": np.zeros(8, np.int32),
        "valid": np.ones(8, bool),
    }
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    by_example = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    make = augment.make(groups, seed=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    compiled = jax.jit(make, in_shardings=by_example, out_shardings=by_example).lower(raw).compile()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text(), collective
    sharded = np.asarray(compiled(raw)["views"])
    assert np.isfinite(sharded).all() and sharded.dtype == np.float32 and (sharded[0, 0] != sharded[0, 1]).any()
    order = np.array([3, 5, 0, 1, 7, 2, 6, 4])
    np.testing.assert_array_equal(np.asarray(compiled({k: v[order] for k, v in raw.items()})["views"]), sharded[order])


def test_what_a_group_does_not_ask_for_is_not_compiled():
    raw = {"views": np.zeros((1, 1, 8, 8, 3), np.uint8), "id": np.zeros(1, np.int32), "epoch": np.zeros(1, np.int32)}

    def primitives(**fields):
        make = augment.make({"views": Group(count=1, size=8, **fields)}, seed=0, mean=(0.5,) * 3, std=(0.5,) * 3)
        return str(jax.make_jaxpr(make)(raw))

    plain = primitives()
    for word, fields in {"dot_general": dict(blur=(0.5,)), "scatter": dict(equalize=0.5), "floor": dict(hue=0.1)}.items():
        assert word not in plain and word in primitives(**fields), word


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(erase=(0.1, 0.2, 0.3)), "erase=.*expected one probability or 2"),
        (dict(posterize=1.5), "posterize=1.5"),
        (dict(posterize_bits=0), "posterize_bits=0.*1 to 8"),
        (dict(rand_augment=(2, 31)), "magnitude 0 to 30"),
        (dict(rand_augment=(2, 11), rand_augment_law="timm"), "magnitude 0 to 10"),
        (dict(rand_augment_law="tim"), "torchvision or timm"),
    ],
)
def test_a_field_that_cannot_be_is_named(fields, says):
    with pytest.raises(UserError, match=says):
        Group(count=2, **fields)
