"""The train step: a loss over the whole batch, its encoders run a microbatch at a time."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import config as configs
from ssljax import losses, method, program, sharding, trees
from ssljax.metrics import count_flops
from tests.conftest import METHODS, raw_batch, small_config


@dataclasses.dataclass(frozen=True)
class TwoTowers(method.Method):
    """Two encodings and a loss over all pairs of them, in any precision."""

    loss_of: object = None

    def encode(self, params, extra, batch, rng, s):
        x, y = (jnp.tanh(batch[k] @ params[k]) @ params["head"] for k in ("image", "text"))
        return {"x": x / jnp.linalg.norm(x, axis=1, keepdims=True), "y": y / jnp.linalg.norm(y, axis=1, keepdims=True)}, extra

    def objective(self, params, extra, encodings, batch, s):
        return self.loss_of(encodings["x"], encodings["y"], jnp.exp(params["scale"])), (extra, {})


LOSSES = {
    "clip": lambda x, y, scale: losses.clip_softmax(x, y, scale, impl="stream"),
    "siglip": lambda x, y, scale: losses.siglip(x, y, scale, -4.0),
    "nt_xent": lambda x, y, scale: losses.nt_xent(x, y, temperature=1 / scale),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("microbatch", [4, pytest.param(12, marks=pytest.mark.quick)])
def test_a_microbatched_step_is_the_whole_batch_to_the_last_digits(name, microbatch):
    """In double precision, where only a different sum, not a different function, could hide."""
    rng = np.random.default_rng(0)
    params = {"image": rng.normal(size=(7, 9)), "text": rng.normal(size=(5, 9)), "head": rng.normal(size=(9, 6)), "scale": np.float64(2.0)}
    batch = {"image": rng.normal(size=(24, 7)), "text": rng.normal(size=(24, 5))}
    towers = TwoTowers(loss_of=LOSSES[name])

    def gradient(size):
        loss = method.whole_batch_loss(towers, size)
        return jax.jit(jax.value_and_grad(lambda p, b: loss(p, {}, b, jax.random.PRNGKey(0), {})[0]))(params, batch)

    with jax.enable_x64(True):
        whole, chunked = gradient(0), gradient(microbatch)
        for w, c in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked), strict=True):
            np.testing.assert_allclose(c, w, rtol=1e-12, atol=1e-14)
        halves = [method.whole_batch_loss(towers, 0)(params, {}, {k: v[i::2] for k, v in batch.items()}, None, {})[0] for i in (0, 1)]
        assert abs(np.mean(halves) - whole[0]) > 1e-3  # which the mean of the parts' own losses is not


def step_of(config, mesh_sizes):
    config.data.crop = "device"
    built = configs.build(config)
    count = int(np.prod(list(mesh_sizes.values())))
    mesh = sharding.make_mesh(mesh_sizes, batch=config.batch, devices=jax.devices()[:count])
    return program.make(config, built, mesh, raw_batch(config), examples=64)


def test_one_knob_in_the_config_and_methods_do_not_change():
    """SigLIP with a ViT (no batch statistics), four devices, each with its own rows: Adam's first moments are the gradient."""
    moments, peak = {}, {}
    for microbatch in (0, 4):
        config = small_config(METHODS["siglip"], microbatch=microbatch)
        config.method.encoder = configs.make(
            method=dict(name="siglip", encoder=dict(name="vit", width=32, depth=1, heads=2, mlp_dim=32, patch_size=8, pool="map",
                                                    class_token=False, out=24)),
            augment={"views": {}}, optim=dict(name="adamw", lr=1e-3),
        ).method.encoder  # fmt: skip
        run = step_of(config, {"data": 4})
        state, metrics = run.step(run.init(), run.put(raw_batch(config)))
        moments[microbatch] = {name: np.asarray(leaf) for name, leaf in trees.names(state.opt) if "/mu/" in name}
        moments[microbatch]["loss"] = np.asarray(metrics["loss"])
        peak[microbatch] = count_flops(run.step, run.shapes, run.put(raw_batch(config)))
    largest = max(np.abs(g).max() for g in moments[0].values())
    for name, whole in moments[0].items():
        np.testing.assert_allclose(moments[4][name], whole, rtol=1e-5, atol=1e-5 * max(np.abs(whole).max(), 1e-2 * largest), err_msg=name)
    assert peak[0] < peak[4] < 1.4 * peak[0]  # encoders run forward twice


@pytest.mark.quick
def test_a_microbatch_that_the_mesh_does_not_divide_is_named():
    from ssljax.errors import UserError

    with pytest.raises(UserError, match="config.microbatch=2 does not divide over data=4"):
        step_of(small_config(METHODS["siglip"], microbatch=2), {"data": 4})


def test_memory_of_activations_falls_with_the_microbatch():
    """What the knob is for: bytes that the compiler sets aside for a step."""
    temporary = {}
    for microbatch in (0, 8):
        config = small_config(METHODS["simclr"], microbatch=microbatch)
        config.batch = 128
        run = step_of(config, {"data": 1})
        compiled = run.step.lower(run.shapes, run.put(raw_batch(config))).compile()
        temporary[microbatch] = compiled.memory_analysis().temp_size_in_bytes
    assert temporary[8] < 0.5 * temporary[0], temporary


@pytest.mark.parametrize("name", ["instdisc", "pirl"])
def test_a_bank_as_long_as_the_data_is_never_copied(name):
    config = small_config(METHODS[name])
    config.method.examples = 4_000_000
    run = step_of(config, {"data": 1})
    bank = run.shapes.extra["bank"]
    compiled = run.step.lower(run.shapes, run.put(raw_batch(config))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * bank.size * 4, name


def test_a_leaf_of_few_moved_rows_is_the_array_that_has_them():
    old = np.arange(20.0).reshape(5, 2, 2)
    moved = trees.Moved(jnp.asarray(old), jnp.asarray([3, 7, 0]), jnp.full((3, 2, 2), -1.0))  # row 7 there is not
    expected = old.copy()
    expected[[0, 3]] = -1.0
    tree = {"bank": moved, "other": jnp.ones(2)}
    np.testing.assert_array_equal(trees.written(tree)["bank"], expected)
    for condition, bank, other in ((True, expected, 1.0), (False, old, 0.0)):
        chosen = trees.chosen(jnp.asarray(condition), tree, {"bank": jnp.asarray(old), "other": jnp.zeros(2)})
        np.testing.assert_array_equal(chosen["bank"], bank)
        np.testing.assert_array_equal(chosen["other"], other)


@pytest.mark.parametrize("name", ["simclr", "dino"])
def test_averaged_weights_are_what_evaluations_take(name, tmp_path):
    """optim.ema, against the average taken here in float64; the checkpoint's encoder is the average's; training is not touched."""
    from ssljax import checkpoint, encoder

    raw, ends = None, {}
    for ema in (0.0, 0.9):
        config = small_config(METHODS[name])
        config.optim.ema = ema
        run, raw = step_of(config, {"data": 1}), raw_batch(config)
        state, seen = run.init(), []
        for _ in range(4):
            state, _ = run.step(state, run.put(raw))
            seen.append(jax.tree.map(np.asarray, {"params": state.params, "stats": state.extra["stats"]}))
        ends[ema] = state
        if not ema:
            start = jax.tree.map(np.asarray, {"params": run.init().params, "stats": run.init().extra["stats"]})
            continue
        want = jax.tree.map(lambda x: x.astype(np.float64), start)
        for step, now in enumerate(seen):
            share = min(ema, (1 + step) / (10 + step))
            want = jax.tree.map(lambda a, b, share=share: share * a + (1 - share) * b, want, now)
        for (where, got), (_, expected) in zip(trees.names(state.extra["average"]), trees.names(want), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6, err_msg=where)
        batch = {"image": raw["image"]}
        features = np.asarray(run.embed(state.params, state.extra, run.put(batch))["features"])
        saver = checkpoint.Checkpoints(tmp_path / "checkpoints")
        saver.save(4, state, configs.to_dict(config), {})
        saver.close()
        loaded = encoder.restore(tmp_path)
        assert "average" not in loaded.extra
        np.testing.assert_allclose(np.asarray(loaded(raw["image"])), features, rtol=1e-4, atol=1e-5)
    for got, want in zip(jax.tree.leaves(ends[0.9].params), jax.tree.leaves(ends[0.0].params), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_large_model_on_one_cpu_multiplies_by_eigen_and_gets_the_same_step(monkeypatch):
    """The compiler takes the options: its program holds products that it did not hand to YNNPACK, the same to rounding, and copies none of
    Adam's moments, as by default it does. The gradient's norm sums squares that are not written out first."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # of a mesh of one the eight others are not seen
    config = small_config(METHODS["mae"])
    config.data.crop = "device"
    built, mesh = configs.build(config), sharding.make_mesh({"data": 1}, batch=config.batch, devices=jax.devices()[:1])
    metrics, texts = [], []
    for least in (0, program.LARGE_MODEL):
        monkeypatch.setattr(program, "LARGE_MODEL", least)
        made = program.make(config, built, mesh, raw_batch(config), examples=64)
        batch = made.put(raw_batch(config))
        with jax.set_mesh(mesh):
            texts.append(made.step.lower(made.shapes, batch).compile().as_text())
        metrics.append(jax.device_get(made.step(made.init(), batch)[1]))
    handed = re.compile(r'%ynn_fusion\S* = .*op_name="[^"]*dot_general"')
    of_products = [len(handed.findall(text)) for text in texts]
    assert of_products[0] == 0 < of_products[1]
    copied = [len(re.findall(r" copy\(%state_opt\S*(?:mu|nu)__", text)) for text in texts]
    assert copied[0] == 0 < copied[1]
    assert not re.findall(r'= f32\[\d+,\S+ fusion\(.*op_name="jit\(train_step\)/square"', texts[0])
    for name, value in metrics[0].items():
        np.testing.assert_allclose(value, metrics[1][name], rtol=1e-4, err_msg=name)
