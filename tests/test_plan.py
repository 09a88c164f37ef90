"""The plan of a run: bytes by kind against the arrays themselves, traffic and collectives of a program counted by hand, the search."""

import math
import pathlib
import re
import types

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


def test_the_states_bytes_are_those_of_its_arrays(monkeypatch):
    """And no more is known of a GPU whose compiler is not there."""
    monkeypatch.setattr(plan, "devices_of", lambda topology: (None, "h100", 8))
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


def test_a_quick_plan_leaves_the_traffic_out(monkeypatch, capsys):
    """Compiled for what is here, as if it were a pod."""
    monkeypatch.setattr(plan, "devices_of", lambda topology: (jax.devices()[:8], "v5e", 8))
    found = {}
    for quick in (False, True):
        config = configs.shrink(configs.load(METHODS["mae"]))
        config.mesh = {"data": 4, "fsdp": 2, "tensor": 1}
        found[quick] = plan.plan(config, "v5e:2x4", quick=quick, top=3)
    whole, quick = found[False], found[True]
    assert "bytes" not in quick and "HBM" not in quick["seconds"] and whole["seconds"]["HBM"] == whole["bytes"] / 819e9
    for name in ("flops", "arguments", "collectives", "fits"):
        assert quick[name] == whole[name], name
    assert quick["total"] == pytest.approx(whole["total"], rel=0.02)
    assert whole["hbm"]["temporaries"] > 0 and sum(whole["collectives"].values()) > 0
    plan.tell(quick)
    assert list(quick["largest"]) == ["links"] and [len(rows) for rows in whole["largest"].values()] == [3, 3]
    assert capsys.readouterr().out.count("  links ") == 3


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
    assert sent == {"all-gather": pytest.approx(7 * 512 * 512 * 4 * 7 / 8)}
    assert plan.traffic(re.sub(r',"known_trip_count":\{[^}]*\}|"known_trip_count":\{[^}]*\},?', "", text)) == (moved, sent)
    # A turn reads the share, writes the whole, reads that and its own share of it for the product, writes the share, and its sine.
    turn = 512 * 512 * 4 * (2 + 5 / 8)
    assert 7 * turn <= moved <= 7 * 2 * turn
    every = plan.largest(text, 99)
    assert sum(size for size, _ in every["HBM"]) == pytest.approx(moved) and every["HBM"] == sorted(every["HBM"], reverse=True)
    ((size, where),) = plan.largest(text, 1)["links"]
    assert size == sent["all-gather"] and "while/body" in where and where.endswith(": all-gather")


# As the TPU's compiler writes them: sums of several arrays in one, a gather that one fusion begins, another goes on with in each of three
# turns of a loop, and a third ends, and a scattered sum as a fusion.
TPU = """
ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %sums = (f32[8,128]{1,0}, bf16[128]{0}, f32[]) all-reduce(%a, %b, %c), channel_id=1, replica_groups=mesh['x'=2,'y'=4] {'y'}, to_apply=%add
  %begun = (bf16[8,128]{1,0}, bf16[32,128]{1,0}) fusion(%a), kind=kCustom, calls=%begin
  %loop = (s32[], f32[8,128]{1,0}, bf16[8,128]{1,0}, bf16[32,128]{1,0}) while(%into), condition=%until, body=%turn
  %whole = bf16[32,128]{1,0} fusion(%part, %room), kind=kCustom, calls=%end
  %share = bf16[16,8]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.3
  %on = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%a), channel_id=4, source_target_pairs={{0,1},{1,0}}
  %next = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%b), channel_id=4, source_target_pairs={{0,1},{1,0}}
  ROOT %off = f32[16]{0} collective-permute-done(%on)
}
%begin (p: bf16[8,128]) -> (bf16[8,128], bf16[32,128]) {
  %p.1 = bf16[8,128]{1,0} parameter(0)
  %gather.1 = bf16[32,128]{1,0} all-gather(%p.1), replica_groups=[2,4]<=[8], dimensions={0}, backend_config={"flag_start":"-1"}
  ROOT %start = (bf16[8,128]{1,0}, bf16[32,128]{1,0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}
%until (at: (s32[], f32[8,128], bf16[8,128], bf16[32,128])) -> pred[] {
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%turns, %three), direction=LT
}
%turn (at: (s32[], f32[8,128], bf16[8,128], bf16[32,128])) -> (s32[], f32[8,128], bf16[8,128], bf16[32,128]) {
  %at = (s32[], f32[8,128]{1,0}, bf16[8,128]{1,0}, bf16[32,128]{1,0}) parameter(0)
  %x = f32[8,128]{1,0} get-tuple-element(%at), index=1
  %part = bf16[8,128]{1,0} get-tuple-element(%at), index=2
  %room = bf16[32,128]{1,0} get-tuple-element(%at), index=3
  %beside = (f32[8,128]{1,0}, bf16[8,128]{1,0}, bf16[32,128]{1,0}, bf16[32,128]{1,0}) fusion(%part, %room, %x), kind=kOutput, calls=%step
}
%step (p: bf16[8,128], q: bf16[32,128], x: f32[8,128]) -> (f32[8,128], bf16[8,128], bf16[32,128], bf16[32,128]) {
  %p.2 = bf16[8,128]{1,0} parameter(0)
  %q.2 = bf16[32,128]{1,0} parameter(1)
  %x.2 = f32[8,128]{1,0} parameter(2)
  %sine = f32[8,128]{1,0} sine(%x.2)
  %gather.2 = bf16[32,128]{1,0} all-gather(%p.2), replica_groups=[2,4]<=[8], dimensions={0}, backend_config={"flag_start":"2"}
  ROOT %all = (f32[8,128]{1,0}, bf16[8,128]{1,0}, bf16[32,128]{1,0}, bf16[32,128]{1,0}) tuple(%sine, %p.2, %q.2, %gather.2)
}
%end (p: bf16[8,128], q: bf16[32,128]) -> bf16[32,128] {
  %p.3 = bf16[8,128]{1,0} parameter(0)
  %q.3 = bf16[32,128]{1,0} parameter(1)
  %gather.3 = bf16[32,128]{1,0} all-gather(%p.3), replica_groups=[2,4]<=[8], dimensions={0}, backend_config={"flag_start":"2"}
  ROOT %done = bf16[32,128]{1,0} custom-call(%p.3, %q.3, %gather.3), custom_call_target="AsyncCollectiveDone"
}
%all-reduce-scatter.3 (p: bf16[64,8]) -> bf16[16,8] {
  %all = bf16[64,8]{1,0} all-reduce(%p), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %mine = bf16[16,8]{1,0} dynamic-slice(%all, %i, %j), dynamic_slice_sizes={16,8}
}
"""


def test_a_tpus_collectives_by_hand():
    _, sent = plan.traffic(TPU)
    assert sent == {
        "all-reduce": 2 * 3 / 4 * (8 * 128 * 4 + 128 * 2 + 4),
        "all-gather": 3 / 4 * 32 * 128 * 2,
        "reduce-scatter": 3 / 4 * 64 * 8 * 2,
        "collective-permute": 16 * 4 + 8 * 4,
    }
    moved = {where: size for size, where in plan.largest(TPU, 99)["HBM"]}
    share, whole, turn = 8 * 128 * 2, 32 * 128 * 2, 8 * 128 * 4
    # The gathered array is written once; what is handed on beside the loop's sine is neither read nor written by it.
    assert moved["begun: fusion"] == share + share + whole and moved["beside: fusion"] == 3 * 2 * turn
    assert "whole: fusion" not in moved


# As the GPU's compiler writes them: collectives with what goes in before what comes out, and a library's product and attention with the
# memory that they are given to work in.
GPU = """
ENTRY %main (a: bf16[64,128]) -> bf16[64,128] {
  %a = bf16[64,128]{1,0} parameter(0)
  %w = f32[8,128]{1,0} parameter(1)
  %scatter = ((bf16[64,128]{1,0}, f32[8]{0}), (bf16[16,128]{1,0}, f32[2]{0})) reduce-scatter-start(%a, %b), replica_groups=[2,4]<=[8]
  %mine = (bf16[16,128]{1,0}, f32[2]{0}) reduce-scatter-done(%scatter)
  %gather = ((bf16[16,128]{1,0}), (bf16[64,128]{1,0})) all-gather-start(%part), replica_groups=[2,4]<=[8], dimensions={0}
  %whole = (bf16[64,128]{1,0}) all-gather-done(%gather)
  %sum = f32[8,128]{1,0} all-reduce-start(%w), replica_groups=[1,8]<=[8], to_apply=%add
  %turned = ((f32[8,128]{1,0}), f32[8,128]{1,0}) all-to-all-start(%w), replica_groups=[2,4]<=[8], dimensions={0}
  %product = (bf16[64,8]{1,0}, s8[33554432]{0}) custom-call(%a, %k), custom_call_target="__cublas$lt$matmul", backend_config={"beta":0}
  %k = bf16[128,8]{1,0} parameter(2)
  %attended = (bf16[64,8]{1,0}, f32[64]{0}, u8[4096]{0}) custom-call(%product), custom_call_target="__cudnn$fmhaSoftmax"
  ROOT %codes = (s8[64]{0}, s8[64]{0}) custom-call(%w), custom_call_target="mine"
}
"""


def test_a_gpus_collectives_and_libraries_by_hand():
    moved, sent = plan.traffic(GPU)
    gathered = {"reduce-scatter": 3 / 4 * (64 * 128 * 2 + 8 * 4), "all-gather": 3 / 4 * 64 * 128 * 2}
    assert sent == gathered | {"all-reduce": 2 * 7 / 8 * 8 * 128 * 4, "all-to-all": 3 / 4 * 8 * 128 * 4}
    moved = {where: size for size, where in plan.largest(GPU, 99)["HBM"]}
    whole, part, out = 64 * 128 * 2, 16 * 128 * 2, 64 * 8 * 2
    assert moved["scatter: reduce-scatter-start"] == whole + 8 * 4 + part + 2 * 4
    assert moved["gather: all-gather-start"] == part + whole and moved["sum: all-reduce-start"] == 2 * 8 * 128 * 4
    assert moved["product: custom-call"] == whole + 128 * 8 * 2 + out
    assert moved["attended: custom-call"] == out + out + 64 * 4
    assert moved["codes: custom-call"] == 8 * 128 * 4 + 64 + 64  # another's bytes are what it is for


def test_a_gpu_is_described_and_grouped_into_hosts(monkeypatch):
    """What the GPU's compiler is asked for; the compiler itself is not installed with the tests."""
    from jax.experimental import topologies

    asked, absent = [], False

    def compiler(name, platform, **more):
        if absent:
            raise NotImplementedError(platform)
        asked.append((platform, more["topology"], more["target_config"]))
        return types.SimpleNamespace(devices=[1])

    monkeypatch.setattr(topologies, "get_topology_desc", compiler)
    for topology in ("a100:4", "h100:64", "h200:12", "b200:2x72"):
        assert plan.devices_of(topology)[::2] == ([1], math.prod(plan.parts_of(topology)[2]))
    assert [found[:2] for found in asked] == [("cuda", "1x1x4"), ("cuda", "1x8x8"), ("cuda", "1x1x12"), ("cuda", "1x2x72")]
    fields = [dict(re.findall(r"(\w+): (\S+)", text)) for *_, text in asked]
    assert 'device_description_str: "NVIDIA H200"' in asked[2][2]
    assert [f["core_count"] for f in fields] == ["108", "132", "132", "148"]
    assert fields[2]["memory_bandwidth"] == "4800000000000" and fields[2]["device_memory_size"] == str(141 * 2**30)
    assert fields[2]["shared_memory_per_core"] == "233472" and fields[2]["shared_memory_per_block_optin"] == "232448"
    absent = True
    assert plan.devices_of("h100:64") == (None, "h100", 64)
    assert f"({'|'.join(plan.GPUS)}):" in pathlib.Path("launch/plan.sh").read_text()  # which makes another environment for them


def test_a_gpus_plan_says_when_jax_must_take_more_of_the_memory(capsys):
    found = {
        "config": "mae", "batch": 8, "topology": "h200:8", "chips": 8, "mesh": {"data": 8}, "flops": 1e12, "fits": True,
        "hbm": {"temporaries": 110 * plan.GIB}, "total": 110 * plan.GIB, "capacity": 141 * plan.GIB, "seconds": {"HBM": 1.0},
        "bound": "HBM", "images_per_second": 8.0,
    }  # fmt: skip
    for size, said in ((110, True), (100, False), (140, False)):
        plan.tell(found | {"total": size * plan.GIB, "fits": size < 137})
        assert ("XLA_PYTHON_CLIENT_MEM_FRACTION=0.97" in capsys.readouterr().out) == said


# What a TPU's compiler keeps on the chip, S(1): fetched, used by two fusions, one of whose results stays there, and put back.
ON_CHIP = """
ENTRY %main (a: bf16[10,100]) -> bf16[10,100] {
  %a = bf16[10,100]{1,0:T(8,128)(2,1)} parameter(0)
  %stack = f32[4,16,128]{2,1,0:T(8,128)} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  %room = f32[8,128]{1,0:T(8,128)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %fetch = (bf16[10,100]{1,0:T(8,128)(2,1)S(1)}, bf16[10,100]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%a)
  %here = bf16[10,100]{1,0:T(8,128)(2,1)S(1)} copy-done(%fetch)
  %half = ((f32[4,16,128]{2,1,0:T(8,128)}), f32[2,16,128]{2,1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%stack), slice={[0:2]}
  %two = (f32[10,100]{0,1:T(8,128)S(1)}, f32[10]{0:T(128)}) fusion(%here, %a), kind=kLoop, calls=%both
  %kept = f32[10,100]{0,1:T(8,128)S(1)} get-tuple-element(%two), index=0
  %one = f32[1,16,128]{2,1,0:T(8,128)S(1)} fusion(%stack, %i), kind=kLoop, calls=%slice
  %next = f32[4,16,128]{2,1,0:T(8,128)} fusion(%stack, %one, %i), kind=kLoop, calls=%update
  %end = bf16[10,100]{1,0:T(8,128)(2,1)S(1)} fusion(%kept), kind=kLoop, calls=%cast
  %back = (bf16[10,100]{1,0:T(8,128)(2,1)}, bf16[10,100]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) copy-start(%end)
  ROOT %out = bf16[10,100]{1,0:T(8,128)(2,1)} copy-done(%back)
}
%both (p: bf16[10,100], q: bf16[10,100]) -> (f32[10,100], f32[10]) {
  %p = bf16[10,100]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %q = bf16[10,100]{1,0:T(8,128)(2,1)} parameter(1)
  %r = f32[10,100]{0,1:T(8,128)} multiply(%p, %q)
  %s = f32[10]{0:T(128)} reduce(%r, %zero), dimensions={1}, to_apply=%add
  ROOT %t = (f32[10,100]{0,1:T(8,128)S(1)}, f32[10]{0:T(128)}) tuple(%r, %s)
}
%slice (p.1: f32[4,16,128], i.1: s32[]) -> f32[1,16,128] {
  %p.1 = f32[4,16,128]{2,1,0:T(8,128)} parameter(0)
  %i.1 = s32[]{:T(128)} parameter(1)
  ROOT %d = f32[1,16,128]{2,1,0:T(8,128)S(1)} dynamic-slice(%p.1, %i.1, %z, %z), dynamic_slice_sizes={1,16,128}
}
%update (p.2: f32[4,16,128], u: f32[1,16,128], i.2: s32[]) -> f32[4,16,128] {
  %p.2 = f32[4,16,128]{2,1,0:T(8,128)} parameter(0)
  %u = f32[1,16,128]{2,1,0:T(8,128)S(1)} parameter(1)
  %i.2 = s32[]{:T(128)} parameter(2)
  ROOT %w = f32[4,16,128]{2,1,0:T(8,128)} dynamic-update-slice(%p.2, %u, %i.2, %z, %z)
}
%cast (p.3: f32[10,100]) -> bf16[10,100] {
  %p.3 = f32[10,100]{0,1:T(8,128)S(1)} parameter(0)
  ROOT %c = bf16[10,100]{1,0:T(8,128)(2,1)S(1)} convert(%p.3)
}
"""


def test_what_a_tpu_keeps_on_the_chip_moves_as_it_is_fetched_and_put_back():
    moved, _ = plan.traffic(ON_CHIP)
    a, row, slab = 16 * 128 * 2, 128 * 4, 16 * 128 * 4  # with what pads their tiles
    index = 4
    assert moved == a + 2 * slab + (a + row) + (slab + index) + (slab + index) + a


# Rows taken of a bank and written into it, in fusions and alone; and rows added to zeros, which are written whole.
BANK = """
ENTRY %main (bank: f32[1000,128], ids: s32[128], rows: f32[8,128]) -> f32[1000,128] {
  %bank = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %ids = s32[128]{0:T(128)} parameter(1)
  %rows = f32[8,128]{1,0:T(8,128)} parameter(2)
  %own = f32[8,128]{1,0:T(8,128)} fusion(%bank, %ids), kind=kCustom, calls=%take
  %others = f32[8,128]{1,0:T(8,128)} gather(%bank, %ids), offset_dims={1}
  %sums = f32[1000,128]{1,0:T(8,128)} fusion(%rows, %ids), kind=kCustom, calls=%add
  %once = f32[1000,128]{1,0:T(8,128)} fusion(%bank, %ids, %rows), kind=kCustom, calls=%put
  ROOT %twice = f32[1000,128]{1,0:T(8,128)} scatter(%once, %ids, %rows), update_window_dims={1}
}
%take (p: f32[1000,128], i: s32[128]) -> f32[8,128] {
  %p = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %i = s32[128]{0:T(128)} parameter(1)
  ROOT %g = f32[8,128]{1,0:T(8,128)} gather(%p, %i), offset_dims={1}
}
%add (r: f32[8,128], i.1: s32[128]) -> f32[1000,128] {
  %r = f32[8,128]{1,0:T(8,128)} parameter(0)
  %i.1 = s32[128]{0:T(128)} parameter(1)
  %zeros = f32[1000,128]{1,0:T(8,128)} broadcast(%zero), dimensions={}
  ROOT %s = f32[1000,128]{1,0:T(8,128)} scatter(%zeros, %i.1, %r), update_window_dims={1}
}
%put (p.1: f32[1000,128], i.2: s32[128], r.1: f32[8,128]) -> f32[1000,128] {
  %p.1 = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %i.2 = s32[128]{0:T(128)} parameter(1)
  %r.1 = f32[8,128]{1,0:T(8,128)} parameter(2)
  ROOT %s.1 = f32[1000,128]{1,0:T(8,128)} scatter(%p.1, %i.2, %r.1), update_window_dims={1}
}
"""


def test_of_a_bank_the_rows_that_are_taken_and_written_move():
    rows, ids, bank = 8 * 128 * 4, 128 * 4, 1000 * 128 * 4
    assert plan.traffic(BANK)[0] == 2 * (rows + ids + rows) + (rows + ids + bank) + 2 * (ids + rows + rows)


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
    monkeypatch.setattr(plan, "plan", lambda *args, **named: fake(*args, **named) | {"fits": False})
    with pytest.raises(UserError, match="3.0 are the state: more chips, or more of --mesh fsdp=2"):
        plan.search(config, "v5e:2x2", lambda found: None)


def test_the_raw_batch_is_what_the_host_gives():
    config = configs.shrink(configs.load("configs/simclr_resnet50_imagenet.py"))
    shapes = plan.raw_shapes(configs.build(config), 64)
    assert "image" not in shapes and shapes["views"].shape[:2] == (64, 2) and shapes["views"].dtype == np.uint8
    boxed = plan.raw_shapes(configs.build(configs.shrink(configs.load("configs/vicregl_resnet50_imagenet.py"))), 64)
    assert boxed["views_box"].shape == (64, 2, 4) and boxed["views_box"].dtype == np.float32
    small = plan.raw_shapes(configs.build(configs.load(METHODS["siglip"])), 64)
    assert small["image"].shape == (64, 32, 32, 3) and small["text"].shape == (64, 12)


@pytest.mark.quick
def test_every_paper_scale_config_says_what_it_takes():
    """A pod, a mesh, memory and the ceiling, as `launch/bench/plans.py --write` puts them there."""
    said = r"^Plan: v\w+:\d+x\d+(x\d+)?, \w+=\d+(,\w+=\d+)*: (about )?[\d.]+ of \d+ GiB a chip, at most [\d,]+ images/s \(.*\)\.$"
    large = [path for path in pathlib.Path("configs").glob("*.py") if "LEARNING" not in path.read_text()]
    assert len(large) > 80
    assert [path.name for path in large if not re.search(said, path.read_text(), re.M)] == []
