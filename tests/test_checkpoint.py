"""Checkpoints: bitwise round trips across meshes, mismatches caught before reading, incomplete steps ignored."""

import json
import logging
import os
import re
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ssljax.checkpoint import UNSIGNED, Checkpoints, exists, locate
from ssljax.errors import UserError

pytestmark = pytest.mark.quick


class Moments(NamedTuple):
    """Stands for an optax state: namedtuples and empty containers inside tuples."""

    count: jax.Array
    mu: dict


def host_state():
    """The truth: numpy arrays of several dtypes, irregular values, in the containers a training state has."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(8, 16)).astype(np.float32)
    kernel[0, :3] = [np.nan, np.inf, -0.0]
    return {
        "params": {"encoder": {"kernel": kernel, "bias": rng.normal(size=(16,)).astype(jnp.bfloat16)}},
        "extra": {"queue": rng.normal(size=(16, 4)).astype(np.float32), "pointer": np.int32(7)},
        "opt": ((), Moments(np.int32(3), {"kernel": rng.normal(size=(8, 16)).astype(np.float32)})),
        "step": np.int32(11),
        "rng": np.array([1, 2**32 - 1], np.uint32),
    }


def mesh_of(data, fsdp):
    devices = jax.devices()
    assert len(devices) >= data * fsdp, "needs 8 fake devices: XLA_FLAGS=--xla_force_host_platform_device_count=8"
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), (AxisType.Auto,) * 2, devices=devices[: data * fsdp])


def sharding(mesh, leaf):
    return NamedSharding(mesh, P("data", "fsdp") if leaf.ndim == 2 else P())


def put(state, mesh):
    return jax.tree.map(lambda x: jax.device_put(x, sharding(mesh, np.asarray(x))), state)


def abstract(state, mesh):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(mesh, x)), state)


def assert_bitwise(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        g, w = np.asarray(g), np.asarray(w)
        assert g.dtype == w.dtype and g.shape == w.shape and g.tobytes() == w.tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with step 5 saved from a 2x4 mesh."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints = Checkpoints(directory)
    checkpoints.save(5, put(host_state(), mesh_of(2, 4)), {"seed": 0, "optim": {"lr": 0.1}}, {"fingerprint": "abc"})
    checkpoints.close()
    return directory


def test_a_run_is_found_by_its_workdir_and_by_its_checkpoints(tmp_path, saved):
    for named in (saved, saved.parent, f"{saved}/", f"{saved.parent}/"):
        assert locate(named) == (saved.parent, saved)
    (tmp_path / "steps" / "5").mkdir(parents=True)  # a folder of steps by another name
    assert locate(tmp_path / "steps") == (tmp_path / "steps", tmp_path / "steps")


@pytest.mark.parametrize("shape", [(2, 4), (1, 1), (4, 2)])
def test_restores_bitwise_on_any_mesh(saved, shape):
    mesh = mesh_of(*shape)
    target = abstract(host_state(), mesh)
    restored = Checkpoints(saved, read_only=True).restore(target)
    assert_bitwise(restored, host_state())
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_restores_to_numpy_without_sharding(saved):
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), host_state())
    restored = Checkpoints(saved, read_only=True).restore(target)
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(restored))
    assert_bitwise(restored, host_state())


def test_config_info_and_names(saved):
    checkpoints = Checkpoints(saved, read_only=True)
    assert checkpoints.config() == {"seed": 0, "optim": {"lr": 0.1}}
    assert checkpoints.info(5) == {"fingerprint": "abc"}
    shapes = checkpoints.shapes()
    assert shapes["opt/1/mu/kernel"].shape == (8, 16) and shapes["params/encoder/bias"].dtype == jnp.bfloat16
    assert set(shapes) == {
        "params/encoder/kernel", "params/encoder/bias", "extra/queue", "extra/pointer",
        "opt/1/count", "opt/1/mu/kernel", "step", "rng",
    }  # fmt: skip


def test_partial_restore_reads_only_what_is_asked(saved):
    mesh = mesh_of(1, 1)
    want = {name: host_state()[name] for name in ("params", "extra")}
    assert_bitwise(Checkpoints(saved, read_only=True).restore_parts(abstract(want, mesh)), want)
    # The optimizer's moments may even be of another shape: they are not looked at.
    one = {"params": {"encoder": {"bias": host_state()["params"]["encoder"]["bias"]}}}
    assert_bitwise(Checkpoints(saved, read_only=True).restore_parts(abstract(one, mesh)), one)


def test_mismatches_are_named(saved):
    state = host_state()
    state["params"]["encoder"]["kernel"] = np.zeros((8, 32), np.float32)  # shape
    state["extra"]["queue"] = state["extra"]["queue"].astype(np.float16)  # dtype: Orbax alone would cast
    state["extra"]["centre"] = np.zeros(3, np.float32)  # not stored
    del state["extra"]["pointer"]  # stored, not expected
    with pytest.raises(UserError) as error:
        Checkpoints(saved, read_only=True).restore(abstract(state, mesh_of(1, 1)))
    message = str(error.value)
    assert str(saved) in message and "4 arrays differ" in message
    assert "params/encoder/kernel: expected float32[8, 32], the checkpoint has float32[8, 16]" in message
    assert "extra/queue: expected float16[16, 4], the checkpoint has float32[16, 4]" in message
    assert "extra/centre: expected float32[3], not in the checkpoint" in message
    assert "extra/pointer: not expected, the checkpoint has int32[]" in message
    with pytest.raises(UserError, match="extra/centre"):
        Checkpoints(saved, read_only=True).restore_parts(abstract({"extra": state["extra"]}, mesh_of(1, 1)))


def test_many_mismatches_are_cut_at_ten(saved):
    state = host_state() | {"more": {f"w{i:02}": np.zeros(2, np.float32) for i in range(15)}}
    with pytest.raises(UserError) as error:
        Checkpoints(saved, read_only=True).restore(abstract(state, mesh_of(1, 1)))
    assert len(str(error.value).splitlines()) == 12 and "and 5 more" in str(error.value)


def test_the_saved_values_survive_donation(tmp_path):
    """The loop donates its state to the next step as soon as `save` returns."""
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    want = np.arange(2**18, dtype=np.float32)
    checkpoints = Checkpoints(tmp_path)
    state = {"w": jnp.asarray(want.copy())}
    checkpoints.save(1, state, {})
    overwrite(state["w"]).block_until_ready()
    assert_bitwise(checkpoints.restore({"w": jax.ShapeDtypeStruct(want.shape, want.dtype)}), {"w": want})
    checkpoints.close()


def test_typed_keys_and_plain_numbers(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = {"rng": jax.random.key(3), "keys": jax.random.split(jax.random.key(1, impl="rbg"), 4), "count": 3}
    checkpoints.save(1, state, {})
    restored = checkpoints.restore(jax.eval_shape(lambda: state))
    assert restored["count"] == 3 and restored["rng"].dtype == state["rng"].dtype
    assert restored["keys"].dtype == state["keys"].dtype
    for name in ("rng", "keys"):
        assert_bitwise(jax.random.key_data(restored[name]), jax.random.key_data(state[name]))
    checkpoints.close()


def test_keeps_the_newest_and_resaves_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, every=10)
    assert checkpoints.latest() is None and not exists(tmp_path)
    assert [step for step in range(31) if checkpoints.due(step)] == [10, 20, 30]
    for step in (10, 20, 30):
        checkpoints.save(step, {"w": jnp.full((4,), step, jnp.float32)}, {"step": step})
    checkpoints.save(30, {"w": jnp.zeros((4,))}, {"step": -1})  # the last step is also a multiple of `every`
    checkpoints.close()
    again = Checkpoints(tmp_path, read_only=True)
    assert again.latest() == 30 and again.config() == {"step": 30} and again.config(20) == {"step": 20}
    target = {"w": jax.ShapeDtypeStruct((4,), jnp.float32)}
    np.testing.assert_array_equal(again.restore(target, step=20)["w"], [20.0] * 4)
    with pytest.raises(UserError, match=r"no checkpoint of step 10 in .*complete steps: \[20, 30\]"):
        again.restore(target, step=10)
    assert not Checkpoints(tmp_path).due(10)


def test_incomplete_steps_are_ignored_and_can_be_saved_anew(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": jnp.ones(4)}, {})
    checkpoints.close()
    (tmp_path / "9").mkdir()  # empty
    (tmp_path / "2" / "state").mkdir(parents=True)  # killed in the middle of a save
    (tmp_path / "2" / "state" / "junk").write_text("{")
    assert Checkpoints(tmp_path, read_only=True).latest() == 1
    (tmp_path / "notes").mkdir()  # not ours: it stays
    again = Checkpoints(tmp_path)
    assert again.latest() == 1
    again.save(2, {"w": jnp.full(4, 2.0)}, {})
    again.wait()
    assert again.latest() == 2
    np.testing.assert_array_equal(again.restore({"w": jax.ShapeDtypeStruct((4,), jnp.float32)})["w"], [2.0] * 4)
    again.close()
    assert (tmp_path / "notes").is_dir() and not (tmp_path / "2" / "state" / "junk").exists()


def test_no_checkpoint_says_where_and_what_was_found(tmp_path):
    assert not exists(tmp_path / "absent")
    (tmp_path / "9").mkdir()
    (tmp_path / "notes.txt").write_text("")
    assert not exists(tmp_path)
    with pytest.raises(UserError, match=r"no complete checkpoint in .*holds 9, notes\.txt"):
        Checkpoints(tmp_path, read_only=True).config()
    with pytest.raises(UserError, match="absent is not a directory"):
        Checkpoints(tmp_path / "absent", read_only=True)
    with pytest.raises(UserError, match="checkpoint.keep=0"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(UserError, match="checkpoint.every=0"):
        Checkpoints(tmp_path, every=0)


# ------------------------------------------------------------------------------------------------------------ the manifest
TARGET = {"w": jax.ShapeDtypeStruct((64,), jnp.float32)}


def three_steps(directory, **options):
    """Steps 1, 2 and 3, whose `w` is full of their number."""
    checkpoints = Checkpoints(directory, **options)
    for step in (1, 2, 3):
        checkpoints.save(step, {"w": jnp.full((64,), step, jnp.float32)}, {"step": step})
    checkpoints.close()
    return directory


def listening(directory, **options):
    lines = []
    return Checkpoints(directory, say=lines.append, **options), lines


def files_of(step):
    """What a manifest vouches for: all but the commit, itself and Orbax's times of day."""
    return sorted(p for p in step.rglob("*") if p.is_file() and str(p.relative_to(step)) not in UNSIGNED)


def test_every_byte_of_a_step_is_vouched_for(tmp_path):
    """A seeded byte of each file in turn is flipped: always named, never read; without one to fall back to, never silent."""
    whole = three_steps(tmp_path / "whole")
    rng = np.random.default_rng(0)
    names = [p.relative_to(whole / "3") for p in files_of(whole / "3")]
    assert len(names) > 5 and not [p for p in names if p.name == "manifest.json"]
    for number, name in enumerate(names):
        directory = shutil.copytree(whole, tmp_path / str(number))
        data = bytearray((directory / "3" / name).read_bytes())
        if not data:
            continue
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        (directory / "3" / name).write_bytes(data)
        checkpoints, lines = listening(directory, read_only=True)
        assert checkpoints.latest() == 2 and checkpoints.config() == {"step": 2}
        np.testing.assert_array_equal(checkpoints.restore(TARGET)["w"], 2.0)
        (line,) = lines
        assert f"{directory / '3'} is damaged: {name} has other bytes" in line and line.endswith("falling back to step 2")
        with pytest.raises(UserError, match=f"3 is damaged: {name}.*of this directory's steps"):
            checkpoints.restore(TARGET, step=3)


@pytest.mark.parametrize("harm, says", [("cut", "bytes, .* were written"), ("gone", "is missing"), ("manifest", "manifest.json cannot")])
def test_other_harm_to_a_file_is_named(tmp_path, harm, says):
    directory = three_steps(tmp_path)
    file = files_of(directory / "3")[-1] if harm != "manifest" else directory / "3" / "manifest.json"
    file.unlink() if harm == "gone" else file.write_bytes(file.read_bytes()[:-7])
    checkpoints, lines = listening(directory)
    assert checkpoints.latest() == 2
    assert len(lines) == 1 and re.search(says, lines[0])
    # The next save replaces it, though it would be step 3 again.
    checkpoints.save(3, {"w": jnp.full((64,), 33.0)}, {})
    assert checkpoints.latest() == 3 and len(lines) == 1
    np.testing.assert_array_equal(checkpoints.restore(TARGET)["w"], 33.0)
    checkpoints.close()


def test_damaged_newer_steps_do_not_push_whole_ones_out(tmp_path):
    directory = three_steps(tmp_path, keep=2)
    (directory / "3" / "manifest.json").write_text("{")
    checkpoints, _ = listening(directory, keep=1)
    assert checkpoints.latest() == 2
    checkpoints.save(20, {"w": jnp.zeros(64)}, {})
    checkpoints.close()
    assert [p.name for p in directory.iterdir() if p.name.isdigit()] == ["20"]


def test_no_whole_step_is_an_error_and_not_a_fresh_start(tmp_path):
    directory = three_steps(tmp_path)
    for step in "123":
        (directory / step / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="1 is damaged: .*, and no step in .* is whole"):
        listening(directory)[0].latest()
    assert len(list(directory.glob("[123]"))) == 3


def test_a_step_of_an_older_version_is_read_and_said_to_be_unverified(tmp_path):
    directory = three_steps(tmp_path)
    (directory / "3" / "manifest.json").unlink()
    checkpoints, lines = listening(directory, read_only=True)
    np.testing.assert_array_equal(checkpoints.restore(TARGET)["w"], 3.0)
    assert len(lines) == 1 and "3 has no manifest.json" in lines[0]
    (directory / "3" / "state" / "_METADATA").write_text("{")
    with pytest.raises(UserError, match="3 cannot be read"):
        listening(directory, read_only=True)[0].restore(TARGET)


# --------------------------------------------------------------------------------------------------------------- policies
def test_what_is_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4, best="knn_top1", keep_best=1)
    for step, score in enumerate([0.1, 0.2, 0.9, 0.8, 0.3, 0.4, 0.2], 1):
        checkpoints.save(step, {"w": jnp.full((64,), step, jnp.float32)}, {})
        checkpoints.score(step, {"knn_top1": score})
    with pytest.raises(UserError, match="checkpoint.best='knn_top1': evaluations give rankme"):
        checkpoints.score(7, {"rankme": 3.0})
    checkpoints.close()
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [3, 4, 6, 7]
    again = Checkpoints(tmp_path, keep=1, best="knn_top1", keep_best=2)  # scores outlive the process
    again.save(8, {"w": jnp.zeros(64)}, {})
    again.close()
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [3, 4, 8]


# ------------------------------------------------------------------------------------------------------------------ disks
def test_a_disk_that_fails_is_one_clear_line_and_earlier_steps_stay(tmp_path, monkeypatch):
    directory = three_steps(tmp_path)
    checkpoints = Checkpoints(directory)

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager._checkpointer, "_post_finalization_callback", full)
    checkpoints.save(4, {"w": jnp.zeros(64)}, {})
    with pytest.raises(UserError, match="step 4 could not be saved in .*No space left.*as they were") as error:
        checkpoints.wait()
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(Checkpoints(directory, read_only=True).restore(TARGET)["w"], 3.0)


MUTATIONS = int(os.environ.get("SSLJAX_MUTATIONS", 400))  # 10000: three minutes or so


@pytest.mark.thorough
def test_mutated_checkpoints_never_crash_the_reader(saved, tmp_path):
    """A file of a step damaged: what is read is what was written, or a UserError names the step. In half the cases the manifest is made
    to fit, so that the damage is believed and reaches JSON, Orbax and TensorStore; then the numbers may differ, and no more."""
    from ssljax import checkpoint

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # Orbax leaves the other files' errors to it once one was raised
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    step, want, rng = folder / "5", host_state(), np.random.default_rng(0)
    files = sorted(p for p in step.rglob("*") if p.is_file() and p.name not in ("commit_success.txt", "_CHECKPOINT_METADATA"))
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), want)
    manifest = (step / "manifest.json").read_bytes()
    damaged = 0
    for i in range(MUTATIONS):
        file = files[i % len(files)]
        before = file.read_bytes()
        data = bytearray(before)
        kind = rng.integers(5)
        if kind == 0:
            data = data[: rng.integers(len(data) + 1)]
        elif kind == 1:
            at = rng.integers(len(data) + 1)
            data[at:at] = rng.bytes(rng.integers(1, 9))
        else:
            for at in rng.integers(0, max(len(data), 1), rng.integers(1, 9)) if data else ():
                data[at] = rng.integers(256)
        believed = i // len(files) % 2 and file.name != "manifest.json"
        file.write_bytes(data)
        if believed:
            (step / "manifest.json").write_text(json.dumps({"step": 5, "files": checkpoint._digests(step)}))
        checkpoints = Checkpoints(folder, read_only=True, say=lambda line: None)
        try:
            assert (
                isinstance(checkpoints.config(), dict | list | str | int | float | None) and believed or checkpoints.config()["seed"] == 0
            )
            checkpoints.info()
            got = checkpoints.restore(target)
            if not believed:
                assert_bitwise(got, want)
        except UserError as error:
            assert str(folder) in str(error)
            damaged += 1
        checkpoints.close()
        file.write_bytes(before)
        (step / "manifest.json").write_bytes(manifest)
    assert_bitwise(Checkpoints(folder, read_only=True).restore(target), want)
    assert damaged > MUTATIONS // 2


@pytest.mark.parametrize("rows, compiles", [(24, False), (2**18, True)], ids=["small", "8 MiB"])
def test_no_program_is_compiled_to_save_a_small_array(rows, compiles, tmp_path):
    """Of an array that eight devices hold each writes a part, cut out by a program of its own: only where a part is large."""
    state = {"params": jax.device_put(np.ones((rows, 8), np.float32), NamedSharding(mesh_of(4, 2), P()))}
    names = []

    def listen(name, seconds, **_):
        names.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, state, {})
        checkpoints.close()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert any("backend_compile" in name for name in names) == compiles, names
