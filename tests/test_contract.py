"""What every method must keep, whatever it computes. The sweep finds the methods by their configs."""

import jax
import numpy as np
import pytest

from ssljax import trees
from tests.conftest import program_of, raw_batch


def loss_and_gradient(config, program):
    """Loss and gradient of the first step, whole, as numpy."""

    def compute(state, raw):
        s = {name: schedule(state.step) for name, schedule in program.schedules.items()}
        rng = jax.random.fold_in(state.rng, state.step)
        (loss, _), grads = jax.value_and_grad(program.method.loss, has_aux=True)(
            state.params, state.extra, program.augment(raw), rng, s
        )
        return loss, grads

    with jax.set_mesh(program.mesh):
        return jax.device_get(jax.jit(compute)(program.init(), program.put(raw_batch(config))))


@pytest.mark.parametrize("mesh", ["data=8", "data=4,fsdp=2"])
def test_eight_devices_give_one_devices_loss_and_gradient(method_config, mesh):
    config, _, alone = program_of(method_config, "1")
    loss, grads = loss_and_gradient(config, alone)
    _, _, many = program_of(method_config, mesh)
    loss8, grads8 = loss_and_gradient(config, many)
    assert abs(loss8 - loss) <= 1e-5 * abs(loss)
    whole = np.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in jax.tree.leaves(grads)))
    for (name, g), (_, g8) in zip(trees.names(grads), trees.names(grads8), strict=True):
        # Relative to the leaf; a leaf whose gradient is zero in exact arithmetic (a key's bias) is held to the whole gradient.
        assert np.max(np.abs(g8 - g)) <= 1e-5 * max(np.max(np.abs(g)), 1e-3 * whole), name


@pytest.mark.parametrize("mesh", ["data=4,fsdp=2"])
def test_one_trace_in_twenty_steps_and_the_loss_moves(method_config, mesh):
    config, _, program = program_of(method_config, mesh)
    traces = []
    listener = lambda event, *_, **__: traces.append(event) if "jaxpr_trace" in event else None  # noqa: E731
    state = program.init()
    state, first = program.step(state, program.put(raw_batch(config)))  # compiles
    before = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for _ in range(19):
            state, last = program.step(state, program.put(raw_batch(config)))
    finally:
        jax.monitoring.clear_event_listeners()
    assert not traces and program.step._cache_size() == 1
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == before
    assert float(last["loss"]) < float(first["loss"])  # the same pictures twenty times: any method fits them better
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
    assert sizes["data=4,fsdp=2"]["opt"] < sizes["1"]["opt"] - big / 2


def test_same_config_same_mesh_same_bits(method_config):
    config, _, program = program_of(method_config, "data=8")
    hashes = []
    for _ in range(2):
        state = program.init()
        for step in range(2):
            state, _ = program.step(state, program.put(raw_batch(config, step)))
        hashes.append(trees.sha256(state))
    assert hashes[0] == hashes[1]


def test_views_of_an_example_do_not_depend_on_its_batch(method_config):
    config, _, program = program_of(method_config, "1")
    raw = raw_batch(config)
    order = np.arange(config.batch)[::-1]
    straight, reversed_ = program.augment(raw), program.augment({k: v[order] for k, v in raw.items()})
    for name in program.method_groups if hasattr(program, "method_groups") else config.augment:
        np.testing.assert_array_equal(np.asarray(straight[name]), np.asarray(reversed_[name])[order])


def test_teacher_starts_equal_to_the_student_and_then_lags(method_config):
    config, _, program = program_of(method_config, "1")
    state = program.init()
    if "teacher" not in state.extra:
        pytest.skip("no teacher in this method")
    student = {k: state.params[k] for k in state.extra["teacher"]}
    assert trees.sha256(student) == trees.sha256(state.extra["teacher"])
    for step in range(2):
        state, _ = program.step(state, program.put(raw_batch(config, step)))
    assert trees.sha256({k: state.params[k] for k in student}) != trees.sha256(state.extra["teacher"])


def test_embed_gives_one_finite_row_an_image(method_config):
    config, _, program = program_of(method_config, "data=8")
    state = program.init()
    out = program.embed(state.params, state.extra, program.put({"image": raw_batch(config)["image"]}))
    assert out["features"].shape[0] == config.batch and out["features"].dtype == np.float32
    assert np.isfinite(np.asarray(out["features"])).all() and np.asarray(out["features"]).std() > 0
