"""The plan of a run: bytes by kind against the arrays themselves, traffic and collectives of a program counted by hand, the search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ssljax import config as configs
from ssljax import plan, program, sharding
from ssljax.errors import UserError
from tests.conftest import METHODS, raw_batch


def test_the_states_bytes_are_those_of_its_arrays():
    config = configs.shrink(configs.load(METHODS["dino"]))
    config.mesh = {"data": 2, "fsdp": 4, "tensor": 1}
    found = plan.plan(config, "h100:8")
    mesh = sharding.make_mesh(config.mesh.to_dict(), batch=config.batch)
    run = program.make(config, configs.build(config), mesh, raw_batch(config), examples=64)
    state = run.init()
    held = lambda tree: sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree) if hasattr(x, "nbytes"))  # noqa: E731
    for name, field in plan.KINDS.items():
        assert found["hbm"][name] == held(getattr(state, field)), name
    assert found["fits"] and "temporaries" not in found["hbm"]
    assert found["images_per_second"] == pytest.approx(config.batch / (found["flops"] / 494.5e12))  # float32 as TF32


def test_what_a_loop_moves_and_sends_counts_as_often_as_it_turns():
    mesh = sharding.make_mesh({"data": 8}, batch=8)
    split = NamedSharding(mesh, P("data"))

    def body(carry, _):
        x, *others = carry  # so many that the compiler numbers them, which the reader must not stumble over
        whole = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))
        return (jax.lax.with_sharding_constraint(jnp.sin(whole @ whole), split), *[y + 1 for y in others]), None

    start = lambda x: (x, *[jnp.float32(i) for i in range(8)])  # noqa: E731
    program_of = jax.jit(lambda x: jax.lax.scan(body, start(x), None, length=7)[0][0], in_shardings=split, out_shardings=split)
    text = program_of.lower(jax.ShapeDtypeStruct((512, 512), jnp.float32)).compile().as_text()
    moved, sent = plan.traffic(text)
    assert sent == {"all-gather": pytest.approx(7 * 512 * 512 * 4)}
    # A turn reads the share, writes the whole, reads it twice for the product and writes the share, and its sine: at the least.
    turn = 512 * 512 * 4 * (1 + 2)
    assert 7 * turn <= moved <= 7 * 4 * turn


def test_wrong_topologies_are_refused():
    for topology in ("v9:4x4", "v5e", "v5e:4xx4", "2*h100:8", "*v5e:4x4", ""):
        with pytest.raises(UserError, match="expected CHIP:SHAPE, e.g. v5e:16x16, h100:64, or"):
            plan.devices_of(topology)


def test_the_search_recomputes_more_and_then_halves_the_batch(monkeypatch, capsys):
    config = configs.load(METHODS["mae"])
    tried = []

    def fake(config, topology):
        tried.append((config.method.encoder.remat, config.batch))
        activations = config.batch * {"none": 4, "dots": 2, "full": 1}[config.method.encoder.remat] * plan.GIB // 64
        hbm = dict.fromkeys(plan.KINDS, plan.GIB) | {"temporaries": activations}
        total = sum(hbm.values())
        return {"hbm": hbm, "total": total, "capacity": 6 * plan.GIB, "fits": total <= 5.8 * plan.GIB, "mesh": {"data": 4, "fsdp": 1}}

    monkeypatch.setattr(plan, "plan", fake)
    config.batch = 256
    plan.search(config, "v5e:2x2", lambda found: None)
    assert tried == [("none", 256), ("dots", 256), ("full", 256), ("full", 128)]
    assert "19.0 of 6 GiB: does not fit; with remat=dots:" in capsys.readouterr().out
    config.batch = 4  # one a device, and the state is too large
    monkeypatch.setattr(plan, "plan", lambda config, topology: fake(config, topology) | {"fits": False})
    with pytest.raises(UserError, match="3.0 are the state: more chips, or more of --mesh fsdp=2"):
        plan.search(config, "v5e:2x2", lambda found: None)


def test_the_raw_batch_is_what_the_host_gives():
    config = configs.shrink(configs.load("configs/simclr_resnet50_imagenet.py"))
    shapes = plan.raw_shapes(configs.build(config), 64)
    assert "image" not in shapes and shapes["views"].shape[:2] == (64, 2) and shapes["views"].dtype == np.uint8
    small = plan.raw_shapes(configs.build(configs.load(METHODS["siglip"])), 64)
    assert small["image"].shape == (64, 32, 32, 3) and small["text"].shape == (64, 12)
