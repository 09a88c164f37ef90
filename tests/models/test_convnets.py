"""ResNet, ConvNeXt, Swin and heads: the papers' sizes, windows against their definition, statistics, public files of other sizes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import fields, layouts, models, trees
from ssljax.errors import UserError
from ssljax.models import convnext, decoders, heads, layers, resnet, swin

pytestmark = pytest.mark.quick


def build(spec):
    return fields.build(models.module_class(spec["name"]), {k: v for k, v in spec.items() if k != "name"}, "encoder")


def normal(seed, *shape):
    return jax.random.normal(jax.random.PRNGKey(seed), shape)


def init(module, *inputs):
    return jax.jit(lambda: models.init(module, jax.random.PRNGKey(1), *inputs, train=False))()


@pytest.mark.parametrize(
    "spec, millions",
    [  # with 1000 classes, as the papers and torchvision state them
        (resnet.size(18), 11.69),
        (resnet.size(50), 25.56),
        (resnet.size(101), 44.55),
        (resnet.size(152), 60.19),
        (resnet.size(50, expansion=2), 68.88),
        (resnet.size(50, expansion=2, groups=32), 25.03),
        (convnext.size("T"), 28.59),
        (convnext.size("S"), 50.22),
        (convnext.size("B"), 88.59),
        (convnext.size("L"), 197.77),
        (convnext.size("V2-atto"), 3.71),
        (convnext.size("V2-T"), 28.64),
        (convnext.size("V2-H"), 660.29),
        (swin.size("T"), 28.29),
        (swin.size("S"), 49.61),
        (swin.size("B"), 87.77),
        (swin.size("L"), 196.53),
    ],
    ids="r18 r50 r101 r152 wide50 next50 cT cS cB cL c2atto c2T c2H sT sS sB sL".split(),
)
@pytest.mark.thorough
def test_parameter_counts_are_the_papers(spec, millions):
    module = build(spec | dict(out=1000, out_bias=True))
    args, kwargs = module.example()
    shapes = jax.eval_shape(lambda: models.init(module, jax.random.PRNGKey(0), *args, train=False, **kwargs)[0])
    assert abs(trees.size(shapes) / 1e6 - millions) < 0.01


TINY = {
    "resnet": dict(name="resnet", stages=(1, 2), widths=(8, 12), stem_width=4, first_stride=2),
    "convnext": dict(name="convnext", stages=(1, 2), widths=(8, 12), layer_scale=0.5),
    "convnext_v2": dict(name="convnext", stages=(1, 2), widths=(8, 12), last_norm="patches", **convnext.V2),
    "swin": dict(name="swin", stages=(1, 2), width=8, heads=(2, 4), windows=(4,)),
    "swin_timm": dict(name="swin", stages=(1, 2), width=8, heads=(2, 4), windows=(4, 3), ragged="timm"),
}


@pytest.mark.parametrize(
    "name, first, last",
    [
        ("resnet", (2, 6, 5, 8), (2, 3, 3, 12)),
        ("convnext", (2, 11, 9, 8), (2, 5, 4, 12)),
        ("convnext_v2", (2, 11, 9, 8), (2, 5, 4, 12)),
        ("swin", (2, 11, 10, 8), (2, 6, 5, 16)),
        ("swin_timm", (2, 11, 10, 8), (2, 6, 5, 16)),
    ],
)
def test_outputs_of_images_that_nothing_divides(name, first, last):
    module = build(TINY[name] | dict(out=3))
    images = normal(0, 2, 44, 38, 3)
    variables = jax.eval_shape(lambda: models.init(module, jax.random.PRNGKey(1), images, train=False))
    out = jax.eval_shape(lambda variables: models.apply(module, *variables, images, train=False)[0], variables)
    assert [x.shape for x in out["stages"]] == [first, last]
    assert out["patches"].shape == (2, last[1] * last[2], last[3])
    assert out["pooled"].shape == (2, last[3]) and out["embedding"].shape == (2, 3)


@pytest.mark.parametrize("spec", [TINY["convnext"] | dict(widths=(8,)), TINY["swin"] | dict(heads=(2,))], ids=["convnext", "swin"])
@pytest.mark.thorough
def test_rematerialisation_changes_no_gradient_and_dropped_depth_follows_its_key(spec):
    images = normal(0, 4, 20, 20, 3)
    module = build(spec | dict(stages=(3,), drop_path=0.5))
    params, _ = init(module, images)

    def value(params, module, seed, train=True):
        return models.apply(module, params, {}, images, train=train, rng=jax.random.PRNGKey(seed))[0]["patches"].std()

    gradient = jax.jit(jax.value_and_grad(value), static_argnums=(1,))
    one, plain = gradient(params, module, 0)
    for (leaf, g), (_, r) in zip(trees.names(plain), trees.names(gradient(params, module.clone(remat="full"), 0)[1]), strict=True):
        np.testing.assert_allclose(r, g, rtol=1e-4, atol=1e-6, err_msg=leaf)
    evaluate = jax.jit(partial(value, train=False), static_argnums=(1,))
    assert len({float(one), float(gradient(params, module, 1)[0]), float(evaluate(params, module, 0))}) == 3
    assert evaluate(params, module, 0) == evaluate(params, module, 1)


def test_stochastic_depth_keeps_the_mean_and_drops_whole_examples():
    y = np.asarray(layers.drop_path(jnp.ones((4000, 2, 3)), 0.25, jax.random.PRNGKey(0)))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (y == y[:, :1, :1]).all() and abs(y.mean() - 1) < 0.03
    assert layers.stage_rates(0.3, (2, 2)) == [pytest.approx((0, 0.1)), pytest.approx((0.2, 0.3))]
    kept = jax.tree.leaves(jax.vjp(lambda y: layers.drop_path(y, 0.25, jax.random.PRNGKey(0)), jnp.ones((4, 50, 3)))[1])
    assert sum(leaf.size for leaf in kept) <= 2 * 4  # of the backward pass: a factor an example, not a choice for every number


# ---------------------------------------------------------------------------------------------------------------- windows
def together(grid, window, shift):
    """For two tokens of a map, whether they share a window whose first full one begins at `shift`: bool (H, W, H, W), by the definition."""
    rows, columns = ((np.arange(n) - s) // w for n, w, s in zip(grid, window, shift, strict=True))
    return (rows[:, None, None, None] == rows[None, None, :, None]) & (columns[None, :, None, None] == columns)


@pytest.mark.parametrize("grid, window, shift", [((8, 12), (4, 4), (2, 2)), ((9, 6), (3, 3), (1, 1)), ((8, 4), (4, 4), (2, 0))])
def test_the_mask_of_shifted_windows_is_the_definition(grid, window, shift):
    mask = swin.shift_mask(grid, window, shift)
    place = np.arange(grid[0] * grid[1]).reshape(1, *grid, 1)
    place = swin.partition(np.roll(place, [-s for s in shift], (1, 2)), window)[..., 0]  # (windows, N), where a token came from
    allowed = together(grid, window, shift).reshape(place.size, place.size)
    np.testing.assert_array_equal(mask, allowed[place[:, :, None], place[:, None, :]])
    # and no token loses one of its own window: rolling brings each whole window together
    assert mask.sum() == allowed.sum()


@pytest.mark.parametrize("shifted", [False, True])
def test_a_token_is_seen_in_its_window_and_nowhere_else(shifted):
    block = swin.Block(2, 4, 2.0, "gelu", "all", 1e-5, "swin", 0.0, False, "float32")
    x = normal(0, 1, 8, 12, 4)
    apply = jax.jit(lambda x: block.apply(params, x, 0.0, jnp.array(shifted))[0])
    params = jax.jit(lambda: block.init(jax.random.PRNGKey(1), x, 0.0, jnp.array(shifted)))()
    expected = together((8, 12), (4, 4), (2, 2) if shifted else (0, 0))
    for token in ((0, 0), (1, 2), (5, 11), (7, 6)):
        moved = np.abs(apply(x.at[0, *token, 0].add(1.0)) - apply(x))[0].max(-1) > 0
        np.testing.assert_array_equal(moved, expected[token])


def test_windows_and_maps_that_do_not_fit():
    x = np.arange(2 * 6 * 9 * 3).reshape(2, 6, 9, 3)
    np.testing.assert_array_equal(swin.join(swin.partition(x, (2, 3)), (2, 3), (6, 9)), x)
    assert swin.window_of((8, 16), 8) == ((8, 8), (0, 0))
    assert swin.window_of((8, 16), 8, "timm") == ((8, 8), (0, 4))
    assert swin.window_of((5, 16), 7) == ((5, 5), (0, 0))
    index = swin.relative_index(4, (2, 3))  # of a table made for windows of 4: middle entry 24, a row 7
    assert index[0, 0] == 24 and index[0, 1] == 23 and index[0, 3] == 24 - 7 and index[5, 0] == 24 + 7 + 2


def test_masked_patches_are_the_mask_token():
    module = build(TINY["swin"] | dict(mask_token=True))
    images, mask = normal(0, 2, 16, 16, 3), np.arange(32).reshape(2, 16) % 3 == 0
    params, _ = init(module, images)
    hidden = jnp.where(np.repeat(np.repeat(mask.reshape(2, 4, 4, 1), 4, 1), 4, 2), 7.0, images)
    pooled = jax.jit(lambda x, mask: models.apply(module, params, {}, x, train=False, mask=mask)[0]["pooled"])
    a = pooled(images, jnp.asarray(mask))
    np.testing.assert_array_equal(a, pooled(hidden, jnp.asarray(mask)))
    assert np.abs(a - pooled(images, jnp.zeros_like(mask))).max() > 1e-3


# ------------------------------------------------------------------------------------------------------------------ layers
def test_batch_norm_normalises_with_the_biased_and_stores_the_unbiased_variance():
    x = np.asarray(normal(0, 3, 2, 2, 5)) * 3 + 1
    norm = layers.BatchNorm(False)
    variables = norm.init(jax.random.PRNGKey(0), x)
    y, updated = norm.apply(variables, x, mutable=["batch_stats"])
    flat = np.float64(x).reshape(-1, 5)
    np.testing.assert_allclose(np.reshape(y, (-1, 5)), (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5), atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    one = norm.apply(variables, x[:1, :1, :1], mutable=["batch_stats"])[1]  # no unbiased variance of one value
    assert np.isfinite(one["batch_stats"]["var"]).all()


def test_response_normalisation():
    x = np.asarray(normal(0, 2, 3, 4, 5)).copy()
    x[..., 2] = 0.0  # a dead channel has no direction, and a gradient all the same
    scale, bias = np.arange(5) + 1.0, np.arange(5) - 2.0
    module = convnext.ResponseNorm()
    norm = np.sqrt(np.square(np.float64(x)).sum((1, 2), keepdims=True))
    expected = scale * x * norm / (norm.mean(-1, keepdims=True) + 1e-6) + bias + x
    params = {"params": {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}}
    np.testing.assert_allclose(module.apply(params, x), expected, rtol=1e-5, atol=1e-6)
    assert np.isfinite(jax.grad(lambda x: module.apply(params, x).std())(jnp.asarray(x))).all()


def test_heads_have_the_biases_and_norms_asked_for():
    def names(module):
        params, stats = jax.eval_shape(lambda: models.init(module, jax.random.PRNGKey(0), jnp.ones((2, 6)), train=False))
        return {name for name, _ in trees.names({**params, "stats": stats})}

    kernels = {"fc1/kernel", "fc2/kernel"}
    norm1 = {"bn1/scale", "bn1/bias", "stats/bn1/mean", "stats/bn1/var"}
    assert names(heads.MLP(hidden=4, out=3)) == kernels | norm1 | {"fc2/bias"}
    assert names(heads.MLP(hidden=4, out=3, norm="none", bias=(True, False))) == kernels | {"fc1/bias"}
    last = heads.MLP(hidden=4, out=3, last_norm=True, last_affine="none")
    assert names(last) == kernels | norm1 | {"stats/bn2/mean", "stats/bn2/var"}
    assert names(last.clone(last_affine="scale")) == names(last) | {"bn2/scale"}
    assert names(last.clone(last_affine="all")) == names(last) | {"bn2/scale", "bn2/bias"}
    with pytest.raises(UserError, match="last_affine='yes'"):
        names(last.clone(last_affine="yes"))
    with pytest.raises(UserError, match="norm='group'"):
        names(heads.MLP(norm="group"))


def test_a_gain_scales_its_prototype():
    module, x = heads.DINOHead(hidden=8, bottleneck=4, out=6, gain=True), normal(0, 3, 5)
    params, _ = models.init(module, jax.random.PRNGKey(1), x, train=False)
    logits, _ = models.apply(module, params, {}, x, train=False)
    doubled = {**params, "last_layer": {**params["last_layer"], "gain": params["last_layer"]["gain"].at[2].set(2.0)}}
    np.testing.assert_allclose(models.apply(module, doubled, {}, x, train=False)[0], logits * np.array([1, 1, 2, 1, 1, 1]), rtol=1e-6)


def test_bad_settings_are_named():
    for spec, message in (
        (TINY["swin"] | dict(heads=(2,)), r"heads=\(2,\).*2 stages"),
        (TINY["swin"] | dict(ragged="hf"), "ragged='hf'.*swin, timm"),
        (TINY["convnext"] | dict(last_norm="tokens"), "last_norm='tokens'.*pooled, patches"),
        (TINY["convnext"] | dict(widths=(8,)), r"widths=\(8,\).*2 stages"),
        (TINY["resnet"] | dict(stem="patch"), "stem='patch'.*imagenet"),
    ):
        with pytest.raises(UserError, match=message):
            init(build(spec), jnp.zeros((1, 32, 32, 3)))
    for size, bad in ((convnext.size, "V3-T"), (swin.size, "XXL"), (resnet.size, 51)):
        with pytest.raises(UserError, match=f"{bad}.*expected"):
            size(bad)


# ------------------------------------------------------------------------------------------------------------ public files
def torch_resnet(bottleneck, widths, groups=1, stages=(1, 2)):
    """A random file in torchvision's names and shapes."""
    shapes = {"conv1.weight": (6, 3, 7, 7), "fc.weight": (5, widths[-1]), "fc.bias": (5,)}
    norms, before = {"bn1": 6}, 6
    for stage, (blocks, out) in enumerate(zip(stages, widths, strict=True), 1):
        for block in range(blocks):
            at, inner = f"layer{stage}.{block}.", out // 2 if bottleneck else out
            convs = [(inner, before, 1), (inner, inner // groups, 3), (out, inner, 1)] if bottleneck else [(out, before, 3), (out, out, 3)]
            for i, (n, c, k) in enumerate(convs, 1):
                shapes[f"{at}conv{i}.weight"], norms[f"{at}bn{i}"] = (n, c, k, k), n
            if before != out or (stage > 1 and block == 0):
                shapes[f"{at}downsample.0.weight"], norms[f"{at}downsample.1"] = (out, before, 1, 1), out
            before = out
    for name, n in norms.items():
        shapes |= {f"{name}.{s}": (n,) for s in ("weight", "bias", "running_mean", "running_var")} | {f"{name}.num_batches_tracked": ()}
    rng = np.random.default_rng(0)
    return {name: rng.random(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("file", [dict(bottleneck=False, widths=(6, 8)), dict(bottleneck=True, widths=(8, 16), groups=2)])
def test_a_public_resnet_of_any_size_is_read_and_written_bit_for_bit(file):
    arrays = torch_resnet(**file)
    layout = layouts.make("torch:resnet", {}, {name: x.shape for name, x in arrays.items()})
    tree = layouts.read(layout, arrays)
    back = layouts.write(layout, tree)
    assert set(back) == {name for name in arrays if "num_batches" not in name}
    for name, array in back.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    module = layouts.modules(layout)["encoder"]
    images = normal(0, 1, 32, 32, 3)
    out = jax.jit(lambda tree: models.apply(module, tree["encoder"], tree["stats"]["encoder"], images, train=False)[0])(tree)
    assert out["embedding"].shape == (1, 5) and np.isfinite(out["embedding"]).all()


def test_files_that_do_not_fit_are_refused():
    arrays = torch_resnet(False, (6, 8))
    shapes = {name: x.shape for name, x in arrays.items()}
    for name in ("timm:convnext", "torch:convnext", "timm:swin"):
        with pytest.raises(UserError, match=name):
            layouts.make(name, {}, shapes)
    with pytest.raises(UserError, match="'gelu'"):
        layouts.make("timm:resnet", dict(act_layer="gelu"), shapes)
    del arrays["layer2.1.bn2.running_var"]
    with pytest.raises(UserError, match="missing: layer2.1.bn2.running_var"):
        layouts.read(layouts.make("timm:resnet", {}, shapes), arrays)


def test_the_image_decoders_last_map_gives_the_pixels_of_its_patches():
    """By the definition, in float64: a place's channels are the pixels of its patch, row by row."""
    decoder = decoders.ImageDecoder(size=8, width=6, patch_size=2)
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 5))
    params, _ = init(decoder, jnp.float32(x))
    kernel, bias = (np.float64(params["pixels"][name]) for name in ("kernel", "bias"))
    bias += np.arange(12)
    found, _ = models.apply(decoder, {"pixels": {"kernel": kernel, "bias": bias}}, {}, jnp.float32(x), train=False)
    around = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    wanted = np.zeros((2, 8, 8, 3))
    for row, column, channel in np.ndindex(8, 8, 3):
        i, j = row // 2, column // 2
        place = around[:, i : i + 3, j : j + 3]
        out = (row % 2 * 2 + column % 2) * 3 + channel
        wanted[:, row, column, channel] = (place * kernel[..., out]).sum((1, 2, 3)) + bias[out]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="size=12 is not 4 times a power of two times patch_size=2"):
        init(decoders.ImageDecoder(size=12, patch_size=2), jnp.float32(x))
