"""What every method must keep, whatever it computes. The sweep finds the methods by their configs."""

import jax
import numpy as np
import pytest

from ssljax import trees
from ssljax.checkpoint import Checkpoints
from ssljax.method import Method, find
from tests.conftest import METHODS, SPINE, program_of, raw_batch


def first_step(path, mesh):
    """State before and after one step, and its metrics. Adam's first moment is then (1 - b1) times the gradient, exactly."""
    config, _, program = program_of(path, mesh)
    before = program.init()
    start = jax.device_get(before)
    after, metrics = program.step(before, program.put(raw_batch(config)))
    return start, after, jax.device_get(metrics)


def moments(state):
    """{parameter: first moment} of Adam, wherever the chain of transformations holds it."""
    return {name.partition("/mu/")[2]: np.asarray(leaf) for name, leaf in trees.names(state.opt) if "/mu/" in name}


@pytest.mark.parametrize("mesh", ["data=8", "data=4,fsdp=2"])
def test_eight_devices_give_one_devices_loss_and_gradient(method_config, mesh):
    _, alone, metrics = first_step(method_config, "1")
    _, many, metrics8 = first_step(method_config, mesh)
    same_loss_and_gradient(alone, metrics, many, metrics8)


@pytest.mark.parametrize("name", ["siglip", "dino", "mae"])
def test_tensor_parallelism_gives_one_devices_loss_and_gradient(name):
    _, alone, metrics = first_step(METHODS[name], "1")
    _, many, metrics8 = first_step(METHODS[name], "data=2,fsdp=2,tensor=2")
    split = [name for name, x in trees.names(many.params) if "tensor" in str(x.sharding.spec)]
    assert any("fc1/kernel" in name for name in split) and any("last_layer" in name or "attn/qkv" in name for name in split), split
    same_loss_and_gradient(alone, metrics, many, metrics8)


def same_loss_and_gradient(alone, metrics, many, metrics8):
    # Relative to the loss, or two roundings of 1: SimSiam's first is the 0.009 that is left of cosines of either sign.
    assert abs(metrics8["loss"] - metrics["loss"]) <= max(1e-5 * abs(metrics["loss"]), 2 * np.finfo(np.float32).eps)
    gradient, gradient8 = moments(alone), moments(many)
    assert set(gradient) == set(gradient8) == {name for name, _ in trees.names(alone.params)}
    largest = max(np.max(np.abs(g)) for g in gradient.values())
    assert largest > 0
    for name, g in gradient.items():
        # Relative to the leaf; one whose gradient is zero in exact arithmetic (a key's bias) is rounding: held to the largest.
        assert np.max(np.abs(gradient8[name] - g)) <= 1e-5 * max(np.max(np.abs(g)), 3e-2 * largest), name


def test_one_trace_in_twenty_steps_and_the_loss_falls(method_config):
    config, _, program = program_of(method_config, "data=4,fsdp=2")
    _, state, first = first_step(method_config, "data=4,fsdp=2")  # compiles, unless another test has
    before = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type, x.sharding), state)
    traces = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: traces.append(event))
    try:
        for _ in range(19):
            state, last = program.step(state, program.put(raw_batch(config)))
    finally:
        jax.monitoring.clear_event_listeners()
    assert not [event for event in traces if "trace" in event or "compile" in event]
    assert program.step._cache_size() == 1
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type, x.sharding), state) == before
    assert float(last["loss"]) != float(first["loss"])
    if not teachers(state):  # the same pictures twenty times: whatever has no moving target fits them better
        assert float(last["loss"]) < float(first["loss"])
    assert all(np.isfinite(float(v)) for v in last.values())


def test_fsdp_shards_parameters_and_moments(method_config):
    sizes = {}
    for mesh in ("1", "data=4,fsdp=2"):
        state = program_of(method_config, mesh)[2].init()
        sizes[mesh] = {k: trees.bytes_per_device(getattr(state, k)) for k in ("params", "opt")}
    # Leaves of under 4,096 elements stay whole; in these toys they are a good part.
    big = sum(np.prod(x.shape) * 4 for x in jax.tree.leaves(state.params) if np.prod(x.shape) >= 2**12)
    assert big > 0
    assert sizes["data=4,fsdp=2"]["params"] == sizes["1"]["params"] - big / 2
    assert sizes["data=4,fsdp=2"]["opt"] == sizes["1"]["opt"] - 2 * big / 2  # Adam's two moments follow their parameters


def test_same_config_same_mesh_same_bits(method_config):
    config, _, program = program_of(method_config, "data=4,fsdp=2")
    hashes = []
    for _ in range(2):
        state = program.init()
        for step in range(2):
            state, _ = program.step(state, program.put(raw_batch(config, step)))
        hashes.append(trees.sha256(state))
    assert hashes[0] == hashes[1]


def test_a_stored_state_goes_on_with_the_same_bits(method_config, tmp_path):
    """All that lasts is in the state: four steps, and two, a checkpoint in fresh arrays, and two."""
    config, _, program = program_of(method_config, "data=4,fsdp=2")
    checkpoints = Checkpoints(tmp_path)
    state = program.init()
    for step in range(4):
        state, _ = program.step(state, program.put(raw_batch(config, step)))
        if step == 1:
            checkpoints.save(2, state, {}, {})
    again = checkpoints.restore(program.shapes, 2)
    checkpoints.close()
    for step in (2, 3):
        again, _ = program.step(again, program.put(raw_batch(config, step)))
    assert trees.sha256(again) == trees.sha256(state)


def test_views_of_an_example_do_not_depend_on_its_batch(method_config):
    config, _, program = program_of(method_config, "1")
    raw = raw_batch(config)
    order = np.arange(config.batch)[::-1]
    augment = jax.jit(program.augment)
    straight, reversed_ = augment(raw), augment({k: v[order] for k, v in raw.items()})
    for name in config.augment:
        np.testing.assert_array_equal(np.asarray(straight[name]), np.asarray(reversed_[name])[order])


def teachers(state):
    """[(student, teacher)], each the parameters that have a teacher; those of the terms where the method is a sum."""
    own = [(state.params, state.extra)]
    own += [
        ({**state.params, **state.params[k]}, extra) for k, extra in state.extra.items() if k in state.params and isinstance(extra, dict)
    ]
    return [({k: params[k] for k in extra["teacher"]}, extra["teacher"]) for params, extra in own if "teacher" in extra]


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(SPINE)))
def test_the_contract_of_every_other_method(name, tmp_path):
    """The same laws in one go, on two programs: one device, and eight as data=4, fsdp=2."""
    config, _, program = program_of(METHODS[name], "data=4,fsdp=2")
    _, _, single = program_of(METHODS[name], "1")
    start = program.init()
    for student, teacher in teachers(start):
        assert trees.sha256(student) == trees.sha256(teacher)
    inputs = {name: value for name, value in raw_batch(config).items() if name in ("image", "text")}
    features = program.embed(start.params, start.extra, program.put(inputs))["features"]
    assert features.shape[0] == config.batch and np.isfinite(np.asarray(features)).all() and np.asarray(features).std() > 0

    one = jax.tree.map(lambda x, shape: jax.device_put(np.asarray(x), shape.sharding), start, single.shapes)
    alone, metrics = single.step(one, single.put(raw_batch(config)))
    state, metrics8 = program.step(start, program.put(raw_batch(config)))
    same_loss_and_gradient(alone, jax.device_get(metrics), state, jax.device_get(metrics8))

    checkpoints = Checkpoints(tmp_path)
    avals = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type, x.sharding), state)
    for step in (1, 2, 3):
        state, last = program.step(state, program.put(raw_batch(config, step)))
        if step == 1:
            checkpoints.save(2, state, {}, {})
    again = checkpoints.restore(program.shapes, 2)
    checkpoints.close()
    for step in (2, 3):
        again, _ = program.step(again, program.put(raw_batch(config, step)))
    assert trees.sha256(again) == trees.sha256(state)  # all that lasts is in the state
    assert program.step._cache_size() == 1 and jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type, x.sharding), state) == avals
    assert all(np.isfinite(float(v)) for v in last.values())


# A method that does something after the step has a moving average, and says so in its extra.
AVERAGING = [name for name in SPINE if find(name).after_step is not Method.after_step]


@pytest.mark.parametrize("name", AVERAGING)
def test_teacher_starts_equal_to_the_student_and_then_lags(name):
    config, _, program = program_of(METHODS[name], "1")
    state = program.init()
    assert teachers(state)
    for student, teacher in teachers(state):
        assert trees.sha256(student) == trees.sha256(teacher)
    for step in range(2):
        state, _ = program.step(state, program.put(raw_batch(config, step)))
    for student, teacher in teachers(state):
        assert trees.sha256(student) != trees.sha256(teacher)


def test_embed_gives_one_finite_row_an_image(method_config):
    config, _, program = program_of(method_config, "data=4,fsdp=2")
    state = program.init()
    out = program.embed(state.params, state.extra, program.put({"image": raw_batch(config)["image"]}))
    assert out["features"].shape[0] == config.batch and out["features"].dtype == np.float32
    assert np.isfinite(np.asarray(out["features"])).all() and np.asarray(out["features"]).std() > 0
