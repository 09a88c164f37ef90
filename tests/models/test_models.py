"""Models: sizes of the papers, views of another resolution, patches left out, rematerialisation."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import fields, metrics, models, program, sharding, trees
from ssljax.errors import UserError
from ssljax.models import attend, heads, layers, positions, resnet, text, transformer, vit
from tests.conftest import equations

pytestmark = pytest.mark.quick


def build(spec):
    return fields.build(models.module_class(spec["name"]), {k: v for k, v in spec.items() if k != "name"}, "encoder")


def parameters(module, *inputs):
    shapes = jax.eval_shape(lambda: models.init(module, jax.random.PRNGKey(0), *inputs, train=False)[0])
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    "spec, millions",
    [  # without a classification head, as the papers' code counts them
        (vit.size("S/16"), 21.67),
        (vit.size("B/16"), 85.80),
        (vit.size("L/16"), 303.30),
        (resnet.size(18), 11.18),
        (resnet.size(50), 23.51),
    ],
    ids=["vit-s", "vit-b", "vit-l", "resnet18", "resnet50"],
)
def test_parameter_counts_are_the_papers(spec, millions):
    assert abs(parameters(build(spec), jnp.zeros((1, 224, 224, 3))) / 1e6 - millions) < 0.01


TINY = dict(name="vit", image_size=16, patch_size=4, width=32, depth=3, heads=4, mlp_dim=64)
WORDS = dict(name="text", vocab_size=16, length=6, width=32, depth=3, heads=4, mlp_dim=64)


@pytest.fixture(scope="module")
def tiny(request):
    module = build(TINY | {"position": getattr(request, "param", "learned")})
    images = jax.random.uniform(jax.random.PRNGKey(1), (2, 16, 16, 3))
    params, _ = models.init(module, jax.random.PRNGKey(0), images, train=False)
    return module, params, images


@pytest.mark.parametrize("tiny", ["learned", "rope"], indirect=True)
@pytest.mark.thorough
def test_keeping_all_patches_in_any_order_only_permutes_them(tiny):
    module, params, images = tiny
    whole, _ = models.apply(module, params, {}, images, train=False)
    order = jnp.stack([jnp.arange(16)[::-1], jnp.roll(jnp.arange(16), 5)])
    kept, _ = models.apply(module, params, {}, images, train=False, keep=order)
    np.testing.assert_allclose(kept["cls"], whole["cls"], atol=1e-5)
    np.testing.assert_allclose(kept["patches"], jnp.take_along_axis(whole["patches"], order[..., None], 1), atol=1e-5)


@pytest.mark.parametrize("tiny", ["learned", "rope"], indirect=True)
@pytest.mark.thorough
def test_patches_left_out_do_not_touch_the_rest(tiny):
    module, params, images = tiny
    keep = jnp.tile(jnp.arange(8), (2, 1))  # the upper half
    changed = images.at[:, 8:].set(0.0)
    a, _ = models.apply(module, params, {}, images, train=False, keep=keep)
    b, _ = models.apply(module, params, {}, changed, train=False, keep=keep)
    assert a["patches"].shape == (2, 8, 32)
    np.testing.assert_array_equal(a["patches"], b["patches"])


def test_dots_keeps_queries_keys_and_values_with_their_biases_once():
    """Not the product without its bias, which would be written beside them, and added to once more."""
    module = transformer.Transformer(depth=2, heads=2, mlp_dim=16, remat="dots")
    x = jax.random.normal(jax.random.PRNGKey(0), (3, 5, 8))
    params, _ = models.init(module, jax.random.PRNGKey(1), x, train=False)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.PRNGKey(p.size), p.shape), params)
    _, pull = jax.vjp(lambda params: models.apply(module, params, {}, x, train=False)[0], params)
    (kept,) = [leaf for leaf in jax.tree.leaves(pull) if leaf.shape == (2, 3, 5, 3, 2, 4)]

    first = jax.tree.map(lambda p: np.float64(p[0]), params["blocks"])
    z = np.float64(x)
    z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6)
    z = z * first["norm1"]["scale"] + first["norm1"]["bias"]
    np.testing.assert_allclose(
        kept[0], np.einsum("bnd,dkhf->bnkhf", z, first["attn"]["qkv"]["kernel"]) + first["attn"]["qkv"]["bias"], atol=1e-5
    )


@pytest.mark.parametrize("remat", ["dots", "full"])
@pytest.mark.thorough
def test_rematerialisation_changes_no_gradient(tiny, remat, blocks_in_a_loop):
    module, params, images = tiny

    def gradient(module):  # of one direction: the last norm leaves a mean or a spread of all features hardly any
        return jax.grad(lambda p: models.apply(module, p, {}, images, train=True)[0]["pooled"][:, 0].sum())(params)

    for (name, g), (_, r) in zip(trees.names(gradient(module)), trees.names(gradient(module.clone(remat=remat))), strict=True):
        np.testing.assert_allclose(r, g, rtol=1e-5, atol=1e-5 * float(abs(g).max()), err_msg=name)


def test_the_program_does_not_grow_with_depth(blocks_in_a_loop):
    def size(depth):
        module = build(TINY | dict(depth=depth))
        params = jax.eval_shape(lambda: models.init(module, jax.random.PRNGKey(0), jnp.zeros((1, 16, 16, 3)), train=False)[0])
        apply = jax.jit(lambda p, x: models.apply(module, p, {}, x, train=False)[0])
        return len(apply.lower(params, jnp.zeros((1, 16, 16, 3))).as_text())

    assert abs(size(50) / size(25) - 1) < 0.05


def test_smaller_crops_take_resized_positions(tiny):
    module, params, _ = tiny
    out, _ = models.apply(module, params, {}, jnp.zeros((2, 8, 8, 3)), train=False)
    assert out["patches"].shape == (2, 4, 32)
    table = params["pos_embed"]
    np.testing.assert_array_equal(positions.resize(table, (4, 4), (4, 4)), table)
    np.testing.assert_allclose(positions.resize(jnp.ones((1, 16, 3)), (4, 4), (6, 2)), np.ones((1, 12, 3)), atol=1e-6)


@pytest.mark.parametrize("pool, has_cls", [("cls", True), ("gap", False), ("map", False), ("gap", True)])
@pytest.mark.thorough
def test_pooling(pool, has_cls):
    module = build(TINY | dict(pool=pool, class_token=has_cls))
    images = jax.random.uniform(jax.random.PRNGKey(2), (2, 16, 16, 3))
    params, _ = models.init(module, jax.random.PRNGKey(0), images, train=False)
    out, _ = models.apply(module, params, {}, images, train=False)
    assert out["pooled"].shape == (2, 32) and ("cls" in out) == has_cls
    if pool == "gap":
        np.testing.assert_allclose(out["pooled"], np.float64(out["patches"]).mean(1), atol=1e-5)


def test_bad_settings_are_named():
    with pytest.raises(UserError, match="patches of 4"):
        models.init(build(TINY), jax.random.PRNGKey(0), jnp.zeros((1, 18, 16, 3)), train=False)
    with pytest.raises(UserError, match="pool='max'"):
        models.init(build(TINY | dict(pool="max")), jax.random.PRNGKey(0), jnp.zeros((1, 16, 16, 3)), train=False)
    with pytest.raises(UserError, match="B/16"):
        vit.size("XL/16")
    with pytest.raises(UserError, match="config.encoder.widht.*did you mean 'width'"):
        fields.build(vit.ViT, dict(widht=3), "encoder")
    with pytest.raises(UserError, match="expected int"):
        fields.build(vit.ViT, dict(width="wide"), "encoder")


def test_resnet_batch_statistics_are_of_the_batch_in_training_and_stored_in_evaluation():
    module = build(dict(name="resnet", stages=(1, 1), bottleneck=False, width=8, stem="cifar"))
    x = jax.random.normal(jax.random.PRNGKey(0), (16, 8, 8, 3)) * 3 + 1
    params, stats = models.init(module, jax.random.PRNGKey(1), x, train=False)
    _, updated = models.apply(module, params, stats, x, train=True)
    conv = jax.lax.conv_general_dilated(x, params["conv1"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    conv = np.float64(conv)
    np.testing.assert_allclose(updated["bn1"]["mean"], 0.1 * conv.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)  # momentum 0.9, from 0 and 1
    np.testing.assert_allclose(updated["bn1"]["var"], 0.9 + 0.1 * conv.var((0, 1, 2), ddof=1), rtol=1e-4)  # unbiased, as torch stores it
    same, unchanged = models.apply(module, params, stats, x, train=False)
    assert trees.sha256(unchanged) == trees.sha256(stats)
    one, _ = models.apply(module, params, stats, x[:1], train=False)
    np.testing.assert_allclose(one["pooled"], same["pooled"][:1], rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_a_causal_text_tower_reads_up_to_the_token_and_a_bidirectional_one_all():
    ids = jnp.array([[5, 6, 7, 1, 0, 0], [5, 6, 7, 2, 3, 1]])
    for causal in (True, False):
        module = text.TextTransformer(vocab_size=16, length=6, width=32, depth=2, heads=4, mlp_dim=64, causal=causal)
        params, _ = models.init(module, jax.random.PRNGKey(0), ids, train=False)
        tokens = models.apply(module, params, {}, ids, train=False)[0]["tokens"]
        assert np.allclose(tokens[0, :3], tokens[1, :3], atol=1e-6) == causal


ONLY = {
    "vit": dict(TINY),
    "vit_rope_scaled": dict(TINY, position="rope", layer_scale=0.5, registers=2, qk_norm=True, out=5),
    "vit_relative": dict(TINY, position="relative", last_norm="pooled", pooler=True),
    "vit_relative_shared_post": dict(TINY, position="relative_shared", norm="post", last_norm="none"),
    "vit_one_block": dict(TINY, depth=1),
    "text_last": dict(WORDS),
    "text_last_causal": dict(WORDS, causal=True, last_norm="pooled", out=5),
    "text_first_post": dict(WORDS, pool="first", norm="post", first_norm=True, last_norm="none"),
    "text_first_causal": dict(WORDS, pool="first", causal=True),
}


@pytest.fixture(params=ONLY)
def pooled_of(request):
    """-> function (params, **how) -> outputs, its params."""
    module = build(ONLY[request.param])
    more = {}
    if request.param.startswith("vit"):
        x = jax.random.normal(jax.random.PRNGKey(2), (3, 16, 16, 3))
    else:
        x, more = jax.random.randint(jax.random.PRNGKey(2), (3, 6), 0, 16), {"valid": jnp.arange(6) < jnp.array([[6], [4], [2]])}
    params, _ = models.init(module, jax.random.PRNGKey(0), x, train=False)
    noise = jax.random.split(jax.random.PRNGKey(1), len(jax.tree.leaves(params)))  # biases and tables of positions that are not 0
    params = jax.tree.map(
        lambda p, key: p + 0.05 * jax.random.normal(key, p.shape), params, jax.tree.unflatten(jax.tree.structure(params), noise)
    )
    return lambda p, **how: models.apply(module, p, {}, x, train=True, **more, **how)[0], params


@pytest.mark.parametrize("program", ["laid_out", "cpu_loop", "tpu_loop"])
@pytest.mark.thorough
def test_the_pooled_token_alone_is_the_same_token_with_the_same_gradients(pooled_of, program, monkeypatch):
    outputs, params = pooled_of
    if program == "cpu_loop":  # as of more than 24 blocks: nothing is cut out of it
        monkeypatch.setattr(layers, "laid_out", lambda *_: False)
        monkeypatch.setattr(transformer, "laid_out", lambda *_: False)
    if program == "tpu_loop":
        monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    want, got = outputs(params), outputs(params, tokens=False)
    assert {"tokens", "patches"} & got.keys() == set()
    for name in got:
        np.testing.assert_allclose(got[name], want[name], atol=2e-5, err_msg=name)
    weight = jax.random.normal(jax.random.PRNGKey(3), want["pooled"].shape)
    gradient = lambda **how: jax.grad(lambda p: (outputs(p, **how)["pooled"] * weight).sum())(params)  # noqa: E731
    for (name, g), (_, w) in zip(trees.names(gradient(tokens=False)), trees.names(gradient()), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5 * max(float(abs(w).max()), 1.0), err_msg=name)


def test_the_pooled_token_alone_saves_what_the_others_would_cost_in_the_last_block():
    module, images = build(TINY | dict(depth=3)), jnp.zeros((2, 16, 16, 3))
    params = jax.eval_shape(lambda: models.init(module, jax.random.PRNGKey(0), images, train=False)[0])
    count = lambda **how: metrics.count_flops(lambda p, x: models.apply(module, p, {}, x, train=True, **how)[0]["pooled"], params, images)  # noqa: E731
    others, width, tokens = 2 * 16, module.width, 17  # of two images
    a_token = 2 * width**2 + 2 * 2 * tokens * width + 2 * 2 * width * module.mlp_dim  # what attention gives, attention, MLP
    assert count() - count(tokens=False) == others * a_token


def test_the_pooled_token_alone_is_dropped_as_often_as_with_all():
    """The last of two blocks at rate 0.5: attention and MLP dropped or doubled, four vectors of one image, whichever way."""
    module, image = build(TINY | dict(depth=2, drop_path=0.5)), jax.random.normal(jax.random.PRNGKey(1), (1, 16, 16, 3))
    params, _ = models.init(module, jax.random.PRNGKey(0), image, train=False)
    images = jnp.tile(image, (64, 1, 1, 1))
    kinds = []
    for tokens in (True, False):
        kinds.append([])
        for vector in models.apply(module, params, {}, images, train=True, rng=jax.random.PRNGKey(2), tokens=tokens)[0]["pooled"]:
            if all(abs(vector - other).max() > 0.01 for other in kinds[-1]):
                kinds[-1].append(vector)
    assert len(kinds[0]) == len(kinds[1]) == 4
    for vector in kinds[0]:
        assert min(float(abs(vector - other).max()) for other in kinds[1]) < 1e-4


@pytest.mark.parametrize("width", [8, 12])  # as wide as the encoder, and not: without the first layer's residual
def test_the_convolutional_decoder_against_loops(width):
    rng = np.random.default_rng(0)
    module = models.module_class("conv_decoder")(width=width, depth=2, groups=4, out=5)
    visible, masked = rng.normal(size=(2, 4, 8)), rng.normal(size=(2, 2, 8))
    restore = np.stack([rng.permutation(6) for _ in range(2)])  # 2 x 3 patches
    inputs = [jnp.asarray(x, jnp.float32) for x in (visible, masked)] + [jnp.asarray(restore)]
    params, _ = models.init(module, jax.random.PRNGKey(0), *inputs, train=False)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    got, _ = models.apply(module, params, {}, *inputs, train=True)

    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = np.concatenate([visible, masked], axis=1)
    x = np.stack([x[b][restore[b]] for b in range(2)]).reshape(2, 2, 3, 8)
    for i in range(2):
        kernel, bias = p[f"conv{i}"]["kernel"], p[f"conv{i}"]["bias"]
        y, per = np.zeros((2, 2, 3, width)) + bias, width // 4
        for out in range(width):
            inside = slice(out // per * kernel.shape[2], (out // per + 1) * kernel.shape[2])
            for row, column, down, across in np.ndindex(2, 3, 3, 3):
                r, c = row + down - 1, column + across - 1
                if 0 <= r < 2 and 0 <= c < 3:
                    y[:, row, column, out] += x[:, r, c, inside] @ kernel[down, across, :, out]
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
        y = y * (1 + np.vectorize(math.erf)(y / np.sqrt(2))) / 2
        x = x + y if x.shape == y.shape else y
    want = x.reshape(2, 6, width) @ p["project"]["kernel"] + p["project"]["bias"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="groups=5"):
        models.init(module.clone(groups=5), jax.random.PRNGKey(0), *inputs, train=False)


@pytest.mark.thorough
def test_layers_of_the_mlp_are_what_it_adds():
    module = vit.ViT(image_size=8, patch_size=4, width=16, depth=3, heads=2, mlp_dim=32)
    x = jax.random.normal(jax.random.PRNGKey(0), (2, 8, 8, 3))
    params, _ = models.init(module, jax.random.PRNGKey(1), x, train=False)
    blocks = params["transformer"]["blocks"]
    blocks["attn"]["proj"] = jax.tree.map(jnp.zeros_like, blocks["attn"]["proj"])  # a block is then x + MLP(LN(x))
    ends, added = (models.apply(module, params, {}, x, train=False, layers=layers)[0]["layers"] for layers in (True, "mlp"))
    np.testing.assert_allclose(np.diff(ends, axis=0), added[1:], atol=1e-5)
    assert np.abs(added).max() > 0.1


def test_prototypes_are_cosines():
    module = heads.DINOHead(hidden=16, bottleneck=8, out=12)
    x = jax.random.normal(jax.random.PRNGKey(0), (4, 10))
    params, _ = models.init(module, jax.random.PRNGKey(1), x, train=False)
    logits, _ = models.apply(module, params, {}, x, train=False)
    scaled = {**params, "last_layer": {"kernel": params["last_layer"]["kernel"] * 7}}
    np.testing.assert_allclose(models.apply(module, scaled, {}, x, train=False)[0], logits, atol=1e-5)
    assert np.abs(logits).max() <= 1 + 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("learned", [("scale", "bias"), ("scale",), ("bias",), ()], ids=lambda names: "+".join(names) or "none")
def test_layer_norm_and_its_gradients_are_the_definitions_and_one_array_is_kept(learned, dtype):
    rng = np.random.default_rng(0)
    x, g = (np.float64(jnp.asarray(rng.normal(1.0, 2.0, size=(3, 5, 16)), dtype)) for _ in range(2))
    params = {name: rng.normal(size=16).astype(np.float32) for name in learned}
    module = layers.LayerNorm(dtype=dtype, use_scale="scale" in learned, use_bias="bias" in learned)
    shapes = jax.tree.map(jnp.shape, module.init(jax.random.PRNGKey(0), jnp.zeros((1, 16))))
    assert shapes == ({"params": {name: (16,) for name in learned}} if learned else {})
    apply = lambda params, x: module.apply({"params": params}, x)  # noqa: E731
    y, pull = jax.vjp(apply, params, jnp.asarray(x, dtype))
    assert y.dtype == dtype and [leaf.dtype for leaf in jax.tree.leaves(pull) if leaf.shape == x.shape] == [dtype]
    dparams, dx = pull(jnp.asarray(g, dtype))

    scale, bias = np.float64(params.get("scale", 1.0)), np.float64(params.get("bias", 0.0))
    rate = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    z = (x - x.mean(-1, keepdims=True)) * rate
    dz = g * scale
    wanted = {"dx": rate * (dz - dz.mean(-1, keepdims=True) - z * (dz * z).mean(-1, keepdims=True)), "y": z * scale + bias}
    wanted |= {name: {"scale": g * z, "bias": g}[name].sum((0, 1)) for name in learned}
    for name, found in {"dx": dx, "y": y, **dparams}.items():
        limit = (2e-6 if dtype == "float32" else 1e-2) * np.abs(wanted[name]).max()
        assert np.abs(np.float64(found) - wanted[name]).max() <= limit, name


SEEN = {
    "all": {},
    "causal": {"causal": True},
    "bias of each head": {"bias": (1, 3, 7, 7)},
    "bias of each pair": {"bias": (1, 1, 7, 7), "mask": (2, 1, 7, 7)},
    "padding": {"mask": (2, 1, 1, 7)},
    "causal with padding": {"mask": (2, 1, 1, 7), "causal": True},
    "one query": {"n": 1, "bias": (1, 3, 1, 7)},
    "memory": {"n": 9},
    "padded memory": {"n": 4, "mask": (2, 1, 1, 7)},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("chip", "heads"), [("cpu", 0), ("gpu", 0), ("tpu", 0), ("tpu that keeps loops", 2), ("tpu that keeps loops", 6)])
@pytest.mark.parametrize("name", SEEN)
def test_attention_and_its_gradients_are_the_definitions(name, chip, heads, dtype, monkeypatch):
    """heads: those of a turn, at most; a picture has three."""
    monkeypatch.setattr(sharding, "platform", lambda: chip[:3])
    if "loops" in chip:
        monkeypatch.setattr(jax, "device_count", lambda: 1)
        monkeypatch.setattr(sharding, "chip", lambda: attend.KEEPS_LOOPS[0])
        monkeypatch.setattr(attend, "ALL_SCORES", 0)
        monkeypatch.setattr(attend, "TURN_SCORES", heads * 8 * 128 * 4)
    rng, seen = np.random.default_rng(0), dict(SEEN[name])
    n, m, causal = seen.pop("n", 7), 7, seen.pop("causal", False)
    q, k, v, g = (np.float64(jnp.asarray(rng.normal(size=(2, length, 3, 8)), dtype)) for length in (n, m, m, n))
    bias = np.float64(jnp.asarray(rng.normal(size=seen["bias"]), dtype)) if "bias" in seen else None
    mask = rng.random(seen["mask"]) < 0.7 if "mask" in seen else None
    if mask is not None:
        mask[..., 0] = True  # every query may look somewhere

    low = lambda x: jnp.asarray(x, dtype)  # noqa: E731
    given = [low(x) for x in (q, k, v, bias) if x is not None]
    ours = lambda q, k, v, bias=None: attend.attend(q, k, v, bias=bias, mask=mask, causal=causal)  # noqa: E731
    assert ("scan[" in str(jax.make_jaxpr(ours)(*given))) == ("loops" in chip and name != "bias of each pair")
    out, pull = jax.vjp(ours, *given)
    found = [out, *pull(low(g))]

    allowed = np.broadcast_to(True if mask is None else mask, (2, 1, n, m)) & (np.tri(n, m, dtype=bool) if causal else True)
    score = np.einsum("bnhf,bmhf->bhnm", q, k) / math.sqrt(8) + (0.0 if bias is None else bias)
    p = np.where(allowed, np.exp(score), 0.0)
    p /= p.sum(-1, keepdims=True)
    dp = np.einsum("bnhf,bmhf->bhnm", g, v)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True))
    wanted = [np.einsum("bhnm,bmhf->bnhf", p, v)]
    wanted += [np.einsum(form, a, b) for form, a, b in (("bhnm,bmhf->bnhf", ds, k), ("bhnm,bnhf->bmhf", ds, q), ("bhnm,bnhf->bmhf", p, g))]
    wanted[1:3] = [x / math.sqrt(8) for x in wanted[1:3]]
    if bias is not None:
        wanted.append(ds.sum(tuple(axis for axis, size in enumerate(bias.shape) if size == 1), keepdims=True))
    assert [x.dtype for x in found] == [dtype] * len(wanted)
    for x, y in zip(found, wanted, strict=True):
        assert x.shape == y.shape
        assert np.abs(np.float64(x) - y).max() <= (2e-6 if dtype == "float32" else 2e-2 * max(np.abs(y).max(), 1.0))


@pytest.mark.parametrize(
    "sides, window, strides",
    [((12, 8), (4, 2), (4, 2)), ((4, 6, 9), (2, 3, 3), (2, 3, 3)), ((11, 8), (4, 4), (4, 4)), ((9, 9), (4, 4), (2, 2))],
    ids=["pictures", "video", "rest", "overlapping"],
)
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_patches_as_a_product_are_the_definitions(sides, window, strides, platform, monkeypatch):
    """By a product where they lie side by side, but on a TPU, which has the convolution."""
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    random = np.random.default_rng(0)
    x, kernel = random.standard_normal((2, *sides, 3)), random.standard_normal((*window, 3, 5))
    windows = np.lib.stride_tricks.sliding_window_view(x, window, tuple(range(1, 1 + len(window))))
    windows = windows[(slice(None), *(slice(None, None, step) for step in strides))]  # (B, *rows, C, *window)
    count = len(window)
    wanted = np.tensordot(windows, kernel, ([count + 1, *range(count + 2, 2 * count + 2)], [count, *range(count)]))
    weight = random.standard_normal(wanted.shape)
    slope = np.tensordot(windows, weight, ([*range(count + 1)], [*range(count + 1)]))  # (C, *window, D)
    letters = "DHW"[-count:]
    names = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    product = lambda kernel: layers.patch_product(jnp.float32(x), kernel, strides, "VALID", dimension_numbers=names)  # noqa: E731
    beside = strides == window and all(side % step == 0 for side, step in zip(sides, window, strict=True))
    called = str(jax.make_jaxpr(product)(jnp.float32(kernel)))
    assert ("conv_general_dilated" in called) == (platform == "tpu" or not beside) == ("dot_general" not in called)
    value, pull = jax.vjp(product, jnp.float32(kernel))
    np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(pull(jnp.float32(weight))[0], np.moveaxis(slope, 0, -2), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("sides, kernel", [((2, 5, 7), (7, 3, 2, 4)), ((2, 5, 3, 4), (3, 4, 6)), ((6, 7), (7, 4))])
def test_a_dense_layer_on_one_cpu_is_the_same_product_of_two_matrices(sides, kernel, few, monkeypatch):
    """Value and both gradients, and nothing else is asked of the compiler than products of two axes; on many devices axes stay apart.

    Of few rows the kernel is the first factor where x's gradient is made, in what the compiler hands on too."""
    monkeypatch.setattr(layers, "LARGE_KERNEL", 1)
    monkeypatch.setattr(layers, "FEW_ROWS", 1024 if few else 0)
    over = 2 if sides[-1] != kernel[0] else 1
    dimensions = (tuple(range(len(sides) - over, len(sides))), tuple(range(over))), ((), ())
    r = jax.random.split(jax.random.PRNGKey(0), 3)
    x, w = jax.random.normal(r[0], sides), jax.random.normal(r[1], kernel)
    g = jax.random.normal(r[2], (*sides[: len(sides) - over], *kernel[over:]))

    def all_of_it(x, w):
        y, pull = jax.vjp(lambda x, w: layers.flat_product(x, w, dimensions), x, w)
        return y, *pull(g)

    def ranks():
        products = [e for e in jax.make_jaxpr(lambda x, w: all_of_it(x, w))(x, w).eqns if e.primitive.name == "dot_general"]
        return {v.aval.ndim for e in products for v in e.invars}

    many = ranks()
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert ranks() == {2} and many == {len(sides), len(kernel), g.ndim}
    a, b, c = (np.asarray(t, np.float64) for t in (x, w, g))
    rows, columns = a.reshape(-1, int(np.prod(kernel[:over]))), b.reshape(int(np.prod(kernel[:over])), -1)
    slopes = c.reshape(len(rows), -1)
    for ours, exact in zip(all_of_it(x, w), (rows @ columns, slopes @ columns.T, rows.T @ slopes), strict=True):
        np.testing.assert_allclose(ours, exact.reshape(ours.shape), rtol=1e-5, atol=1e-5)
    text, (n, k) = jax.jit(all_of_it).lower(x, w).compile(compiler_options=program.LARGE_ON_CPU).as_text(), rows.shape
    assert few == any(f"{turned} dot(" in text for turned in (f"f32[{k},{n}]{{1,0}}", f"f32[{n},{k}]{{0,1}}"))  # two names of one order


@pytest.mark.parametrize("few", [False, True])
def test_a_loop_over_blocks_keeps_no_second_stack_of_their_weights(few, blocks_in_a_loop, monkeypatch):
    """On one CPU, where dense layers take kernels of more axes as matrices: of a kernel's size loops return its gradient alone."""
    monkeypatch.setattr(layers, "LARGE_KERNEL", 1)
    monkeypatch.setattr(layers, "FEW_ROWS", 1024 if few else 0)
    module, images = build(TINY | dict(depth=25)), jnp.zeros((2, 16, 16, 3))
    params = jax.eval_shape(lambda: models.init(module, jax.random.PRNGKey(0), images, train=False)[0])
    loss = lambda p: jnp.square(models.apply(module, p, {}, images, train=True)[0]["tokens"]).sum()  # noqa: E731
    loops = [e for e in equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr) if e.primitive.name == "scan"]
    returned = collections.Counter(v.aval.size for e in loops for v in e.outvars if v.aval.ndim > 2)
    kernels = collections.Counter(p.size for name, p in trees.names(params) if "blocks" in name and name.endswith("kernel"))
    assert len(loops) == 2 and len(kernels) == 3  # of queries, keys and values; the two of the MLP; what joins the heads
    assert {size: returned[size] for size in kernels} == kernels


@pytest.mark.parametrize("devices", [1, 8])
def test_prototypes_are_the_product_with_a_kernel_of_unit_columns(devices, monkeypatch):
    """And so are the gradients of input, kernel and gain, in the definition's float64."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    random = np.random.default_rng(0)
    x, kernel, gain, weight = (random.standard_normal(shape) for shape in ((5, 6), (6, 9), (9,), (5, 9)))
    module = heads.Prototypes(9, "float32", gain=True)
    call = lambda x, kernel, gain: module.apply({"params": {"kernel": kernel, "gain": gain}}, x)  # noqa: E731
    value, pull = jax.vjp(call, *map(jnp.float32, (x, kernel, gain)))
    norm = np.linalg.norm(kernel, axis=0)
    unit = kernel / norm
    slope = x.T @ weight * gain  # in the unit columns
    wanted = (weight * gain) @ unit.T, (slope - unit * (unit * slope).sum(0)) / norm, ((x @ unit) * weight).sum(0)
    np.testing.assert_allclose(value, x @ unit * gain, rtol=1e-5, atol=1e-5)
    for found, exact in zip(pull(jnp.float32(weight)), wanted, strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("remat", "biased"), [("none", True), ("dots", False), ("full", True)])
def test_attention_in_turns_on_a_mesh_is_attention_at_once(remat, biased, monkeypatch):
    """A model's output and gradients, on devices that split pictures and heads between them; as if they were TPUs."""
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    position = "relative" if biased else "learned"
    encoder = vit.ViT(width=24, depth=2, heads=4, mlp_dim=24, patch_size=4, image_size=12, remat=remat, position=position)
    images = jax.random.normal(jax.random.PRNGKey(0), (8, 12, 12, 3))
    variables = encoder.init(jax.random.PRNGKey(1), images, train=False)
    # Biases are zeros at first.
    variables = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.PRNGKey(3), x.shape), variables)
    way = jax.random.normal(jax.random.PRNGKey(2), (8, 24))
    slopes = lambda v, x: jax.value_and_grad(lambda v: (encoder.apply(v, x, train=False)["pooled"] * way).sum())(v)  # noqa: E731
    wanted = jax.jit(slopes)(variables, images)
    monkeypatch.setattr(sharding, "chip", lambda: attend.KEEPS_LOOPS[0])
    monkeypatch.setattr(attend, "ALL_SCORES", 0)
    monkeypatch.setattr(attend, "TURN_SCORES", 16 * 128 * 4)  # one head of ten tokens
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, batch=8)
    with jax.set_mesh(mesh):
        split = jax.device_put(images, jax.sharding.NamedSharding(mesh, sharding.BATCH))
        called = str(jax.make_jaxpr(lambda v, x: slopes(v, x))(variables, split))
        assert "shard_map" in called and "length=4" in called  # two pictures of two heads on each device
        found = jax.jit(lambda v, x: slopes(v, x))(variables, split)
    for ours, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max()) + 1e-7)


def test_masks_of_texts_in_turns_on_a_mesh_are_never_those_of_all_heads(monkeypatch):
    """Outputs and gradients are those at once, and neither loop is handed masks as large as all scores, which wait in HBM."""
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    tower = text.TextTransformer(width=24, depth=4, heads=4, mlp_dim=24, vocab_size=9, length=12)  # four blocks are a loop
    ids = jax.random.randint(jax.random.PRNGKey(0), (16, 12), 1, 9) * (jnp.arange(12) < jnp.arange(1, 17)[:, None])
    variables = tower.init(jax.random.PRNGKey(1), ids, train=False)
    way = jax.random.normal(jax.random.PRNGKey(2), (16, 12, 24))
    loss = lambda v, ids: (tower.apply(v, ids, train=False, valid=ids != 0)["tokens"] * way).sum()  # noqa: E731
    wanted = jax.jit(jax.value_and_grad(loss))(variables, ids)
    monkeypatch.setattr(sharding, "chip", lambda: attend.KEEPS_LOOPS[0])
    monkeypatch.setattr(attend, "ALL_SCORES", 0)
    for count in (1, 4):  # heads of a turn: one, of two of a device, and those of two texts
        monkeypatch.setattr(attend, "TURN_SCORES", count * 16 * 128 * 4)
        mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, batch=16)
        with jax.set_mesh(mesh):
            split = jax.device_put(ids, jax.sharding.NamedSharding(mesh, sharding.BATCH))
            slopes = lambda v, x: jax.value_and_grad(loss)(v, x)  # noqa: E731
            traced = jax.make_jaxpr(slopes)(variables, split)
            found = jax.jit(slopes)(variables, split)
        for ours, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max()) + 1e-7)
        loops = [e for e in equations(traced.jaxpr) if e.primitive.name == "scan"]
        assert {e.params["length"] for e in loops} == {4, 4 * 2 // count}
        assert max(v.aval.size for e in loops for v in e.invars if v.aval.dtype == bool) == ids.size
