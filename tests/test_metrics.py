"""Metrics: what is written, FLOPs against counts by hand, rates against an arithmetic clock, the bar's text."""

import io
import json
import math
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from ssljax import metrics
from ssljax.errors import UserError

pytestmark = pytest.mark.quick


# --------------------------------------------------------------------------------------------------------------- writer
def test_jsonl_and_events(tmp_path):
    writer = metrics.Writer(tmp_path / "deep" / "run")
    writer.write(1, {"loss": jnp.float32(2.5), "lr": 0.1})
    writer.write(2, {"loss": jnp.array([np.nan]), "grad": np.float64("inf"), "low": -math.inf})
    writer.flush()
    assert writer.latest["step"] == 2 and math.isnan(writer.latest["loss"])
    writer.close()
    writer.close()
    lines = (tmp_path / "deep" / "run" / "metrics.jsonl").read_text().splitlines()
    strict = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in lines]
    assert strict[0] == {"step": 1, "loss": 2.5, "lr": 0.1}
    rows = metrics.read(tmp_path / "deep" / "run")
    assert rows[0] == strict[0] and rows[1]["grad"] == math.inf and rows[1]["low"] == -math.inf
    assert math.isnan(rows[1]["loss"]) and rows[1]["step"] == 2
    assert list((tmp_path / "deep" / "run").glob("events.out.tfevents.*"))


def test_write_never_waits_for_the_device(tmp_path):
    """A value that is fetched only once the test allows it: `write` returns before."""
    allowed = threading.Event()

    class Slow:
        def __array__(self, dtype=None, copy=None):
            assert allowed.wait(10)
            return np.array(3.0)

    writer = metrics.Writer(tmp_path)
    writer.write(1, {"loss": Slow()})
    assert writer.latest == {}
    allowed.set()
    writer.flush()
    assert writer.latest == {"step": 1, "loss": 3.0}
    writer.close()


def test_errors_of_the_thread_surface(tmp_path):
    writer = metrics.Writer(tmp_path)
    writer.write(1, {"image": np.zeros((2, 2))})  # not a scalar
    with pytest.raises(ValueError, match="reshape"):
        writer.flush()
    with pytest.raises(ValueError, match="reshape"):
        writer.write(2, {"loss": 1.0})
    with pytest.raises(ValueError, match="reshape"):
        writer.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to .*file"):
        metrics.Writer(tmp_path / "file" / "run")
    (tmp_path / "taken" / "metrics.jsonl").mkdir(parents=True)
    writer = metrics.Writer(tmp_path / "taken")
    writer.write(1, {"loss": 1.0})
    with pytest.raises(UserError, match="metrics.jsonl"):
        writer.flush()


def test_resume_forgets_what_came_after(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = "".join(json.dumps({"step": step, "loss": float(step)}) + "\n" for step in (1, 2, 3, 4))
    path.write_text(rows + '{"step": 5, "lo')  # killed in the middle of a line
    assert [row["step"] for row in metrics.read(path)] == [1, 2, 3, 4]
    writer = metrics.Writer(tmp_path)
    writer.resume(2)
    writer.write(3, {"loss": 33.0})
    writer.close()
    assert [(row["step"], row["loss"]) for row in metrics.read(path)] == [(1, 1.0), (2, 2.0), (3, 33.0)]
    assert [p.name for p in tmp_path.glob("metrics*")] == ["metrics.jsonl"]
    path.write_text("nonsense\n" + rows)
    with pytest.raises(UserError, match="line 1 is not JSON"):
        metrics.read(path)


def test_inactive_writer_leaves_no_trace(tmp_path):
    writer = metrics.Writer(tmp_path / "run", active=False)
    writer.resume(3)
    writer.write(1, {"loss": 1.0})
    writer.flush()
    writer.close()
    assert not (tmp_path / "run").exists() and writer.latest == {}


def test_wandb_asked_for_and_absent(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        metrics.Writer(tmp_path, wandb={"project": "p"})


# ---------------------------------------------------------------------------------------------------------------- flops
def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


MATMUL = 2 * 4 * 5 * 6  # (4, 5) @ (5, 6)


def test_flops_of_matmuls():
    a, b = shape(4, 5), shape(5, 6)
    assert metrics.count_flops(jnp.dot, a, b) == MATMUL
    assert metrics.count_flops(jax.jit(jnp.dot), a, b) == MATMUL
    assert metrics.count_flops(lambda x, y: jnp.einsum("hbd,hcd->hbc", x, y), shape(3, 4, 8), shape(3, 7, 8)) == (2 * 3 * 4 * 7 * 8)
    gradient = jax.grad(lambda x, y: jnp.sin(x @ y).sum(), argnums=(0, 1))
    assert metrics.count_flops(gradient, a, b) == 3 * MATMUL
    remat = jax.grad(lambda x, y: jnp.sin(jax.checkpoint(lambda u: jnp.sin(u @ y))(x)).sum(), argnums=(0, 1))
    assert metrics.count_flops(remat, a, b) == 4 * MATMUL


def test_flops_through_control_flow():
    w = shape(5, 5)
    step = 2 * 4 * 5 * 5

    def scan(x, w):
        return jax.lax.scan(lambda c, _: (jax.lax.scan(lambda d, _: (d @ w, None), c, None, 3)[0], None), x, None, 7)[0]

    assert metrics.count_flops(scan, shape(4, 5), w) == 21 * step
    assert metrics.count_flops(jax.grad(lambda x, w: jnp.sum(scan(x, w)), argnums=(0, 1)), shape(4, 5), w) == 63 * step
    assert metrics.count_flops(lambda x, w: jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w), shape(4, 5), w) == 2 * step
    assert metrics.count_flops(
        lambda x, w: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w, x), shape(4, 5), w
    ) == step  # fmt: skip


def test_flops_of_custom_derivatives():
    @jax.custom_vjp
    def f(x, y):
        return x @ y

    f.defvjp(lambda x, y: (x @ y, (x, y)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
    a, b = shape(4, 5), shape(5, 6)
    assert metrics.count_flops(f, a, b) == MATMUL
    assert metrics.count_flops(jax.grad(lambda x, y: f(x, y).sum(), argnums=(0, 1)), a, b) == 3 * MATMUL


def test_flops_of_shard_map_count_all_devices():
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), (AxisType.Auto,) * 2, devices=jax.devices()[:4])
    sharded = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(P("data"), P(None, "fsdp")), out_specs=P("data", "fsdp"))
    assert metrics.count_flops(sharded, shape(4, 5), shape(5, 6)) == MATMUL
    partial = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), axis_names={"data"}, check_vma=False)
    assert metrics.count_flops(jax.jit(partial), shape(4, 5), shape(5, 6)) == MATMUL


def conv(strides=1, groups=1, padding="SAME"):
    return lambda x, w: jax.lax.conv_general_dilated(
        x, w, (strides,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


@pytest.mark.parametrize("strides, groups", [(1, 1), (2, 1), (1, 6), (2, 3)])
def test_flops_of_convolutions_and_their_gradients(strides, groups):
    x, w = shape(2, 8, 8, 6), shape(4, 4, 6 // groups, 12)
    side = 8 // strides
    forward = 2 * (2 * side * side * 12) * (4 * 4 * 6 // groups)
    f = conv(strides, groups)
    assert metrics.count_flops(f, x, w) == forward
    # Every multiply-add of the forward pass has one in each gradient, whatever the stride. Padding is counted too, so
    # the input gradient's may differ by the taps at the border; without padding nothing does.
    f, side = conv(strides, groups, "VALID"), (8 - 4) // strides + 1
    forward = 2 * (2 * side * side * 12) * (4 * 4 * 6 // groups)
    assert metrics.count_flops(f, x, w) == forward
    wrt_kernel = metrics.count_flops(jax.grad(lambda w, x: jnp.sum(jnp.sin(f(x, w)))), w, x)
    assert wrt_kernel == 2 * forward
    both = metrics.count_flops(jax.grad(lambda x, w: jnp.sum(jnp.sin(f(x, w))), argnums=(0, 1)), x, w)
    side = 8 * 4 // strides  # pairs of an input position and a tap on the (zero-filled) output lattice, along one axis
    assert both - wrt_kernel == 2 * (2 * side * side * 6) * (12 // groups)


# ----------------------------------------------------------------------------------------------------------------- peak
@pytest.mark.parametrize(
    "kind, teraflops",
    [
        ("TPU v2", 22.5), ("TPU v3", 61.5), ("TPU v4", 275), ("TPU v4 lite", 138), ("TPU v5e", 197),
        ("TPU v5 lite", 197),
        ("TPU v5", 459), ("TPU v5p", 459), ("TPU v6 lite", 918), ("TPU v6e", 918), ("TPU7x", 1153.5),
        ("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835), ("NVIDIA H200", 989), ("NVIDIA B200", 2250),
        ("NVIDIA GH200 480GB", 989), ("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("NVIDIA A10G", 70), ("NVIDIA A10", 125),
        ("Tesla V100-SXM2-16GB", None), ("Tesla T4", None), ("cpu", None), ("", None), ("AMD Instinct MI300X", None),
    ],
)  # fmt: skip
def test_peak_flops(kind, teraflops):
    assert metrics.peak_flops(kind, jnp.bfloat16) == (None if teraflops is None else pytest.approx(teraflops * 1e12))


def test_peak_flops_by_dtype():
    assert metrics.peak_flops("Tesla V100-SXM2-16GB", jnp.float16) == 125e12
    assert metrics.peak_flops("NVIDIA A100-SXM4-40GB", "float32") == 156e12
    assert metrics.peak_flops("NVIDIA H100 80GB HBM3", jnp.int8) is None


# ----------------------------------------------------------------------------------------------------------- throughput
def test_throughput_over_a_window():
    now = [100.0]
    rates = metrics.Throughput(32, 1e12, 4, 2e12, window=3, clock=lambda: now[0])
    assert rates.update(10, 5.0) == {} and rates.eta(20) is None
    now[0] += 8.0  # slow: compilation
    assert rates.update(11, 6.0) == {
        "images_per_second": 4.0, "seconds_per_step": 8.0, "input_stall": 0.75, "mfu": 1e12 / 8 / 8e12,
    }  # fmt: skip
    for step in (12, 13, 14):  # the window of 3 steps has left the slow one behind
        now[0] += 0.5
        last = rates.update(step, 0.1)
    assert last == pytest.approx({"images_per_second": 64.0, "seconds_per_step": 0.5, "input_stall": 0.2, "mfu": 1e12 / 0.5 / 8e12})
    assert rates.eta(20) == pytest.approx(3.0)
    rates.pause()
    now[0] += 1000
    assert rates.update(15) == {}
    now[0] += 1.0
    assert rates.update(17, 9.0)["input_stall"] == 1.0 and rates.eta(17) == 0.0


def test_a_run_is_held_against_a_band(tmp_path):
    path = tmp_path / "band.json"
    path.write_text(json.dumps({"loss": [[0, 4.0, 6.0], [100, 1.0, 2.0]]}))
    reference = metrics.Reference(path)
    assert "on track: loss 4" in reference(10, {"loss": 4.0}) and reference(12, {"loss": 4.0}) is None  # once a tenth
    assert "OFF TRACK" in reference(50, {"loss": 4.2}) and reference.outside == 1  # there the band is 2.5 to 4
    assert reference(60, {"knn_top1": 0.5}) is None and reference(101, {"loss": 9.0}) is None


def test_another_run_is_a_band(tmp_path):
    rng = np.random.default_rng(0)
    lines = [{"step": s, "loss": 5 * np.exp(-s / 200) + 0.02 * rng.normal()} for s in range(10, 510, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 510, "knn_top1": 0.5}]))
    reference = metrics.Reference(tmp_path)
    told = [reference(s, {"loss": 5 * np.exp(-s / 200)}) for s in range(10, 510, 10)]
    assert sum(line is not None for line in told) >= 10 and reference.outside == 0
    late = metrics.Reference(tmp_path)
    assert "OFF TRACK" in late(250, {"loss": 5.0})


def test_a_reference_that_is_none_is_named(tmp_path):
    for name, text in (("a.json", "[]"), ("b.json", "{}"), ("c.json", '{"loss": [[1, 2]]}')):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match="config.log.reference="):
            metrics.Reference(tmp_path / name)
    with pytest.raises(UserError, match="expected a run's workdir or a .json"):
        metrics.Reference(tmp_path / "nowhere")


def test_goodput_adds_up_over_restarts():
    now = iter([0.0, 10.0, 40.0, 42.0, 100.0, 101.0])
    goodput = metrics.Goodput({"step": 50.0, "lost to restarts": 7.0}, clock=lambda: next(now))
    goodput("compile")
    goodput("step")
    goodput("input stall")
    goodput("step")
    goodput.move(4.0, "start", "restore")
    assert goodput.seconds() == {"step": 53.0, "lost to restarts": 7.0, "start": 6.0, "restore": 4.0, "compile": 30.0, "input stall": 58.0}
    now = iter([])
    goodput = metrics.Goodput({"step": 30.0, "compile": 10.0, "start": 0.2}, since=0.0, clock=lambda: 0.0)
    assert goodput.text() == "goodput 75 % of 40 s: step 30 s, compile 10 s"


def test_what_was_logged_behind_the_checkpoint_is_counted_as_lost(tmp_path):
    writer = metrics.Writer(tmp_path)
    for step in (10, 20, 30):
        writer.write(step, {"loss": 1.0, "seconds_per_step": 0.5})
    writer.close()
    writer = metrics.Writer(tmp_path)
    assert writer.resume(20) == 5.0 and writer.resume(20) == 0.0
    writer.close()


def test_mfu_is_absent_where_unknown():
    for flops, peak in ((1e9, None), (None, 1e12)):
        ticks = iter((0.0, 1.0))
        rates = metrics.Throughput(8, flops, 1, peak, clock=lambda ticks=ticks: next(ticks))
        rates.update(0)
        assert set(rates.update(1)) == {"images_per_second", "seconds_per_step", "input_stall"}


# ------------------------------------------------------------------------------------------------------------- progress
def test_plain_lines_where_there_is_no_terminal():
    now, stream = [0.0], io.StringIO()
    bar = metrics.Progress(200, 100, "simclr", stream=stream, clock=lambda: now[0])
    values = {"loss": 1.23456, "images_per_second": 812.4, "input_stall": 0.031}
    for step in range(101, 201):
        now[0] += 0.5
        bar.update(step, values, eta=3725.0)
    bar.write("kNN 0.61")
    bar.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "simclr 101/200 (50%) loss 1.235, 812 images/s, MFU n/a, stall 3%, ETA 1:02:05"
    assert len(lines) == 1 + 4 + 1 + 1  # one every 10 s of 50, the note, the last state
    assert lines[-2] == "kNN 0.61" and lines[-1].startswith("simclr 200/200 (100%)") and "\r" not in stream.getvalue()


def test_a_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    bar = metrics.Progress(10, 4, "dino", stream=stream)
    bar.update(10, {"loss": 0.5, "mfu": 0.421}, eta=0.0)
    bar.close()
    assert "10/10" in stream.getvalue() and "loss 0.5, MFU 42.1%, ETA 0:00:00" in stream.getvalue()


def test_inactive_progress_is_silent():
    stream = io.StringIO()
    bar = metrics.Progress(10, stream=stream, active=False)
    bar.update(1, {"loss": 1.0})
    bar.write("x")
    bar.close()
    assert stream.getvalue() == ""


# --------------------------------------------------------------------------------------------------------------- alarms
@pytest.mark.parametrize(
    "numbers, says",
    [
        ({"teacher_entropy": math.log(256) - 1e-3, "prototype_entropy": math.log(256)}, "uniform teacher"),
        ({"teacher_entropy": 1e-3, "prototype_entropy": 0.01}, "one prototype"),
        ({"gradient_norm": 0.0}, "no gradient"),
        ({"feature_std": 1e-3}, "one direction"),
        ({"rankme": 1.1}, "few dimensions"),
        ({"queue_drift": 0.9}, "stale queue"),
        (metrics.spread(np.outer(np.arange(8.0), [1, 1, 0, 0, 0]) + 3), "dead dimensions: feature_dead 60% of"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_collapse_raises_its_alarm_once(numbers, says):
    alarms = metrics.Alarms(after=10, patience=3)
    assert not alarms(9, numbers)  # a start looks like that
    heard = [line for step in range(10, 20) for line in alarms(step, numbers)]
    assert len(heard) == 1 and heard[0].startswith(f"step 12: alarm, {says}")
    alarms(20, dict.fromkeys(numbers, 4.0) | {"teacher_entropy": 3.0, "feature_dead": 0.0, "queue_drift": 0.1})
    assert [len(alarms(step, numbers)) for step in range(21, 25)] == [0, 0, 1, 0]  # again, after it was well


def test_runs_that_learn_raise_none():
    """The figures of launch/bench/results."""
    seen = {
        "teacher_entropy": 4.605,
        "prototype_entropy": 5.4,
        "rankme": 13.9,
        "feature_std": 0.3,
        "gradient_norm": 0.2,
        "queue_drift": 0.2,
        "loss": 3.0,
    }
    alarms = metrics.Alarms(patience=1)
    assert not any(alarms(step, seen | metrics.spread(np.random.default_rng(0).normal(size=(64, 8)))) for step in range(9))
