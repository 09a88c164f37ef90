"""Optimizers: who gets what, freezing, layers in a stack. Their rules are checked by the golden figures; here against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax import optim, trees
from ssljax.errors import UserError
from ssljax.optim import Rule

pytestmark = pytest.mark.quick

LAYERS = 3


def tree(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = {
        "encoder": {
            "patch_embed": {"kernel": (2, 3), "bias": (3,)},
            "pos_embed": (1, 4, 3),
            "transformer": {"blocks": {"fc1": {"kernel": (LAYERS, 3, 4), "bias": (LAYERS, 4)}}, "norm": {"scale": (3,)}},
        },
        "head": {"kernel": (3, 5), "bias": (5,)},
        "logit_scale": (),
    }
    make = lambda shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    return jax.tree.map(make, shapes, is_leaf=lambda x: isinstance(x, tuple))


def flat(x):
    return {name: np.asarray(leaf, np.float64) for name, leaf in trees.names(x)}


def scalars(lr=0.1, weight_decay=0.05):
    return {"lr": jnp.float32(lr), "weight_decay": jnp.float32(weight_decay)}


def train(tx, params, steps, s=None):
    """-> the parameters and the optimizer's state after every step, fed with the gradients tree(100 + step)."""
    state, history, states = tx.init(params), [], []

    @jax.jit
    def one(grads, state, params, step):
        updates, state = tx.update(grads, state, params, s=s(step) if s else scalars(), step=step)
        return optax.apply_updates(params, updates), state

    for step in range(steps):
        params, state = one(tree(100 + step), state, params, jnp.int32(step))
        history.append(params)
        states.append(state)
    return history, states


def test_no_decay_by_default_and_rules():
    params = tree()
    rules = optim.rules(params)
    decayed = {name for name, rule in rules.items() if rule.weight_decay}
    assert decayed == {"encoder/patch_embed/kernel", "encoder/transformer/blocks/fc1/kernel", "head/kernel"}
    for name in ("a/cls_token", "mask_token", "x/registers", "pool/probe", "blocks/scale1/gamma", "logit_bias"):
        assert optim.rules({name: np.zeros(2)})[name].weight_decay == 0
    # The first match wins; a rule that says nothing of decay leaves a bias without it, one that does is obeyed.
    groups = (("^head/bias$", Rule(weight_decay=1.0)), ("^head/", Rule(lr=0.5)), ("head|encoder", Rule(lr=2.0)))
    rules = optim.rules(params, groups)
    assert rules["head/bias"] == Rule(1.0, 1.0) and rules["head/kernel"] == Rule(0.5, 1.0)
    assert rules["encoder/patch_embed/bias"] == Rule(2.0, 0.0) and rules["logit_scale"] == Rule(1.0, 0.0)


def test_adamw_follows_its_schedules():
    """Algorithm 2 of Loshchilov and Hutter in float64, lr and decay changing from step to step, an lr factor on the head."""
    s = lambda step: {"lr": 0.1 / (1.0 + step), "weight_decay": 0.05 * (1.0 + step)}  # noqa: E731
    tx = optim.make("adamw", params=tree(), groups=(("^head/", Rule(lr=0.1)),), b2=0.95)
    history, _ = train(tx, tree(), 3, s)
    for name, p in flat(tree()).items():
        m = v = 0.0
        factor, decays = (0.1 if name.startswith("head") else 1.0), float(name.endswith("kernel"))
        for step in range(3):
            g = flat(tree(100 + step))[name]
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
            direction = m / (1 - 0.9 ** (step + 1)) / (np.sqrt(v / (1 - 0.95 ** (step + 1))) + 1e-8)
            p = p - s(step)["lr"] * factor * (direction + s(step)["weight_decay"] * decays * p)
            np.testing.assert_allclose(flat(history[step])[name], p, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
@pytest.mark.thorough
def test_freezing(name):
    """Before the thaw: no movement, untouched moments, no part in the clipping norm. After: a first step like any other."""
    groups = (("^head/", Rule(freeze_until=2, weight_decay=1.0)),)
    tx = optim.make(name, params=tree(), groups=groups, clip_norm=1.0)
    history, states = train(tx, tree(), 4)
    path = [flat(params) for params in (tree(), *history)]
    for leaf in path[0]:
        moved = [not np.array_equal(path[i][leaf], path[i + 1][leaf]) for i in range(4)]
        assert moved == ([False, False, True, True] if leaf.startswith("head") else [True] * 4), leaf
    moments = {leaf: value for leaf, value in flat(states[1]).items() if "/head/" in leaf}
    assert moments and not any(value.any() for value in moments.values())
    # The others do as if the head were not there.
    without = {key: value for key, value in tree().items() if key != "head"}
    tx = optim.make(name, params=without, clip_norm=1.0)
    state = tx.init(without)
    grads = {key: value for key, value in tree(100).items() if key != "head"}
    updates, _ = tx.update(grads, state, without, s=scalars(), step=jnp.int32(0))
    expected = flat(optax.apply_updates(without, updates))
    for leaf, value in expected.items():
        np.testing.assert_allclose(flat(history[0])[leaf], value, rtol=1e-6, atol=1e-7)


def test_bias_correction_starts_with_the_thaw():
    tx = optim.make("adamw", params=tree(), groups=(("^head/", Rule(freeze_until=50)),), b2=0.999)
    params = tree()
    state = tx.init(params)
    updates, state = tx.update(tree(1), state, params, s=scalars(), step=jnp.int32(0))
    assert not updates["head"]["kernel"].any()
    updates, _ = tx.update(tree(1), state, params, s=scalars(0.1, 0.0), step=jnp.int32(50))
    np.testing.assert_allclose(updates["head"]["kernel"], -0.1 * np.sign(tree(1)["head"]["kernel"]), rtol=1e-4)


def test_layer_decay():
    scales = optim.layer_scales(tree(), 0.5)
    np.testing.assert_array_equal(np.ravel(scales["encoder/transformer/blocks/fc1/kernel"]), [0.125, 0.25, 0.5])
    assert scales["encoder/transformer/blocks/fc1/bias"].shape == (LAYERS, 1)
    assert scales["encoder/patch_embed/kernel"] == scales["encoder/patch_embed/bias"] == scales["encoder/pos_embed"] == 1 / 16
    assert scales["encoder/transformer/norm/scale"] == scales["head/kernel"] == scales["logit_scale"] == 1
    scales = optim.layer_scales(tree(), 0.5, norm="block")
    assert scales["encoder/transformer/norm/scale"] == 0.5 and scales["head/kernel"] == 1
    # Every tower has its own depth.
    towers = {f"{t}/{n}": np.zeros((d, 2)) for t, d in (("a", 1), ("b", 2)) for n in ("t/blocks/kernel", "pos_embed")}
    scales = optim.layer_scales(towers, 0.5)
    assert (scales["a/pos_embed"], scales["b/pos_embed"]) == (0.25, 0.125)
    # In an update the factor multiplies the step of every layer, decay included.
    plain, decayed = (optim.make("adamw", params=tree(), layer_decay=decay) for decay in (None, 0.5))
    updates = [tx.update(tree(1), tx.init(tree()), tree(), s=scalars(), step=jnp.int32(0))[0] for tx in (plain, decayed)]
    whole, scaled = (u["encoder"]["transformer"]["blocks"]["fc1"]["kernel"] for u in updates)
    np.testing.assert_allclose(scaled, whole * np.array([0.125, 0.25, 0.5]).reshape(-1, 1, 1), rtol=1e-6)


@pytest.mark.parametrize("name, hyper", [("lars", {}), ("lars", {"norm": "separate", "clip": True}), ("lamb", {})])
def test_trust_ratio_is_per_layer_of_a_stack(name, hyper):
    stacked = {"blocks/kernel": tree()["encoder"]["transformer"]["blocks"]["fc1"]["kernel"] * jnp.array([1, 5, 0])[:, None, None]}
    apart = {f"layer{i}/kernel": stacked["blocks/kernel"][i] for i in range(LAYERS)}
    grads = np.random.default_rng(5).normal(size=(LAYERS, 3, 4)).astype(np.float32)
    grads[1] *= 100
    one = lambda params, g: optim.make(name, params=params, **hyper).update(  # noqa: E731
        g, optim.make(name, params=params, **hyper).init(params), params, s=scalars(), step=jnp.int32(0)
    )[0]
    together = one(stacked, {"blocks/kernel": jnp.asarray(grads)})["blocks/kernel"]
    separate = one(apart, {f"layer{i}/kernel": jnp.asarray(grads[i]) for i in range(LAYERS)})
    for i in range(LAYERS):
        np.testing.assert_allclose(together[i], separate[f"layer{i}/kernel"], rtol=1e-5)


def test_muon_orthogonalises_every_layer_and_head_part_by_itself():
    rng = np.random.default_rng(6)
    shapes = {"blocks/qkv/kernel": (2, 12, 3, 2, 4), "blocks/proj/kernel": (2, 2, 4, 12), "conv/kernel": (3, 3, 4, 8), "head/bias": (5,)}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    grads = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    tx = optim.make("muon", params=params)
    u, _ = tx.update(grads, tx.init(params), params, s=scalars(lr=1.0, weight_decay=0.0), step=jnp.int32(0))
    qkv, proj = np.asarray(u["blocks/qkv/kernel"]), np.asarray(u["blocks/proj/kernel"])
    matrices = [qkv[i, :, j].reshape(12, 8) for i in range(2) for j in range(3)] + [proj[i].reshape(8, 12) for i in range(2)]
    for matrix in [*matrices, np.asarray(u["conv/kernel"]).reshape(36, 8)]:
        singular = np.linalg.svd(matrix, compute_uv=False) / (0.2 * max(matrix.shape) ** 0.5)
        assert 0.6 < singular.min() and singular.max() < 1.3  # five steps of Newton and Schulz
    np.testing.assert_allclose(u["head/bias"], -np.sign(grads["head/bias"]), rtol=1e-4)  # Adam's first step


@pytest.mark.parametrize("freeze", [0, 3])
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_state_keeps_its_avals_and_moments_are_float32(name, freeze):
    params = tree(dtype=jnp.bfloat16)
    groups = (("^head/", Rule(freeze_until=freeze)),)
    shapes = jax.eval_shape(lambda: params)
    tx = optim.make(name, params=shapes, groups=groups, layer_decay=0.75, clip_norm=1.0)  # shapes are enough
    state = jax.eval_shape(tx.init, params)
    step = lambda g, state, p: tx.update(g, state, p, s=scalars(), step=jnp.int32(0))  # noqa: E731
    updates, after = jax.eval_shape(step, params, state, params)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    for before, now in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (before.shape, before.dtype, before.weak_type) == (now.shape, now.dtype, now.weak_type) and not now.weak_type
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} <= {jnp.dtype("float32"), jnp.dtype("int32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
    applied = jax.eval_shape(optax.apply_updates, params, updates)
    assert {leaf.dtype for leaf in jax.tree.leaves(applied)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    "name, settings, says",
    [
        ("adam", {}, ["'adam'", "adamw"]),
        ("adamw", {"beta2": 0.9}, ["'beta2'", "b2"]),
        ("sgd", {"groups": (("^haed/kernel", Rule()),)}, ["'^haed/kernel'", "head/kernel", "close names"]),
        ("sgd", {"groups": (("head/(", Rule()),)}, ["'head/('", "regular expression"]),
        ("sgd", {"layer_decay": 1.5}, ["layer_decay=1.5"]),
        ("sgd", {"layer_decay": 0.5, "layer_decay_norm": "top"}, ["layer_decay_norm='top'", "block"]),
        ("lars", {"norm": "both"}, ["'both'", "separate"]),
    ],
)
def test_errors(name, settings, says):
    with pytest.raises(UserError) as error:
        optim.make(name, params=tree(), **settings)
    for words in says:
        assert words in str(error.value)
    if "close names" in says:
        assert str(error.value).count(",") == 2  # three names
