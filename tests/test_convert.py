"""Public weights in and out; what does not fit is named; a frozen encoder in two lines; a run that starts from a checkpoint."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ssljax
from ssljax import config as configs
from ssljax import convert, encoder, fields, initialise, layouts, models, program, sharding, trees
from ssljax.errors import UserError
from ssljax.models import positions, resnet, text, vit
from ssljax.train import train

pytestmark = pytest.mark.quick

HF = dict(
    model_type="dinov2", architectures=["Dinov2Model"], hidden_size=48, num_hidden_layers=3, num_attention_heads=4, mlp_ratio=2,
    image_size=32, patch_size=8, layer_norm_eps=1e-6, layerscale_value=1.0, qkv_bias=True, hidden_act="gelu",
)  # fmt: skip


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A folder of transformers with random weights, its names and shapes from the layout, its numbers from numpy."""
    folder = tmp_path_factory.mktemp("public")
    rng = np.random.default_rng(0)
    shapes = {"embeddings.mask_token": (1, 48), "embeddings.cls_token": (1, 1, 48), "embeddings.position_embeddings": (1, 17, 48)}
    shapes |= {"embeddings.patch_embeddings.projection.weight": (48, 3, 8, 8), "embeddings.patch_embeddings.projection.bias": (48,)}
    for i in range(3):
        at = f"encoder.layer.{i}."
        for name in ("attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense"):
            shapes |= {f"{at}{name}.weight": (48, 48), f"{at}{name}.bias": (48,)}
        shapes |= {f"{at}mlp.fc1.weight": (96, 48), f"{at}mlp.fc1.bias": (96,), f"{at}mlp.fc2.weight": (48, 96), f"{at}mlp.fc2.bias": (48,)}
        shapes |= {f"{at}{name}.{leaf}": (48,) for name in ("norm1", "norm2") for leaf in ("weight", "bias")}
        shapes |= {f"{at}layer_scale1.lambda1": (48,), f"{at}layer_scale2.lambda1": (48,)}
    shapes |= {"layernorm.weight": (48,), "layernorm.bias": (48,)}
    save_file({k: rng.normal(size=v).astype(np.float32) * 0.2 for k, v in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(HF))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3]}))
    return folder


@pytest.fixture(scope="module")
def ours(public, tmp_path_factory):
    out = tmp_path_factory.mktemp("ours")
    convert.main(["convert", "--from", f"hf:{public}", "--out", str(out)])
    return out


def test_in_and_out_is_the_same_file(public, ours, tmp_path):
    convert.send_out(ours, "hf", tmp_path)
    before, after = load_file(public / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys() and all(np.array_equal(before[k], after[k]) for k in before)
    assert json.loads((tmp_path / "config.json").read_text()) == HF


@pytest.mark.thorough
def test_two_lines_give_features_of_pictures_of_any_size(ours):
    encode = ssljax.load(ours)
    pictures = np.random.default_rng(1).integers(0, 256, (5, 40, 56, 3)).astype(np.uint8)
    features = encode(pictures, batch=2)
    assert features.shape == (5, 48) and features.dtype == np.float32
    np.testing.assert_allclose(encode(pictures.astype(np.float32) / 255.0), features, atol=1e-5)
    square = pictures[:, :32, :32]
    prepared = (square / np.float32(255.0) - np.float32([0.4, 0.5, 0.6])) / np.float32([0.2, 0.2, 0.3])  # the folder's own numbers
    np.testing.assert_allclose(encode(square), encode.outputs(prepared)["cls"], atol=1e-5)
    layers = encode.outputs(prepared, layers=True)["layers"]
    assert layers.shape == (3, 5, 17, 48)
    with pytest.raises(UserError, match="this method gives features"):
        encode(pictures, name="text_embedding")


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda a: a.pop("layernorm.weight"), "missing: layernorm.weight"),
        (lambda a: a.update(extra=np.zeros(3, np.float32)), "unknown: extra"),
        (lambda a: a.update({"layernorm.bias": np.zeros(47, np.float32)}), r"layernorm.bias\[47\].*where the model has \[48\]"),
    ],
)
def test_a_file_that_does_not_match_names_what_differs(public, damage, says):
    arrays = dict(load_file(public / "model.safetensors"))
    damage(arrays)
    with pytest.raises(UserError, match=says):
        convert.recognise("hf", HF, arrays)


def test_what_cannot_be_read_is_named(tmp_path):
    np.savez(tmp_path / "pickled.npz", a=np.array([{"a": 1}], dtype=object))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00")
    (tmp_path / "notes.txt").write_text("weights")
    for name, says in (
        ("pickled.npz", "cannot be read"),
        ("cut.safetensors", "cannot be read"),
        ("notes.txt", "expected .safetensors"),
        ("absent.npz", "no such file"),
    ):
        with pytest.raises(UserError, match=says):
            convert.read_arrays(tmp_path / name)
    with pytest.raises(UserError, match="expected one of .*hf"):
        convert.recognise("huggingface", {}, {})
    with pytest.raises(UserError, match="near it: hf:dinov2"):
        layouts.make("hf:dino_v2", {}, {})


def initial(module):
    """Random parameters of a ViT, numpy."""
    init = jax.jit(lambda key: models.init(module, key, *module.example()[0], train=False)[0])
    return jax.tree.map(np.asarray, init(jax.random.PRNGKey(0)))


SIZES = [
    dict(pool="map", class_token=False),
    dict(class_position=True, layer_scale=0.1, qk_norm=True),
    dict(registers=3, layer_scale=0.1, gated=True, activation="silu"),
    dict(position="sincos_mae", out=5, out_bias=True, pool="gap", last_norm="pooled"),
]


@pytest.mark.parametrize("change", SIZES, ids=str)
@pytest.mark.thorough
def test_every_vit_of_ours_goes_to_timm_and_back(change):
    spec = fields.expand(vit.ViT, dict(width=32, depth=2, heads=2, mlp_dim=64, image_size=32, patch_size=8, **change), "encoder")
    module = fields.build(vit.ViT, spec, "encoder")
    params = initial(module)
    tree = {"encoder": params}
    layout, config, arrays = layouts.export("timm", {"encoder": {"name": "vit", **spec}}, tree)  # reads what it wrote, and compares
    again, theirs = convert.recognise("timm", config, arrays)
    images = jax.random.normal(jax.random.PRNGKey(1), (2, 32, 32, 3))
    run = lambda module: jax.jit(lambda params, x: models.apply(module, params, {}, x, train=False)[0])  # noqa: E731
    want, got = run(module)(params, images), run(layouts.modules(again)["encoder"])(theirs["encoder"], images)
    np.testing.assert_allclose(got["tokens"], want["tokens"], atol=1e-5)
    np.testing.assert_allclose(got["pooled"], want["pooled"], atol=1e-5)


RESNETS = [
    dict(stages=(1, 2), bottleneck=False, width=8, out=3, out_bias=True),
    dict(stages=(2, 1), width=8, stem_width=4),
    dict(stages=(1, 1), widths=(16, 64), out=3, out_bias=True),
]


@pytest.mark.parametrize("kind", ["hf", "timm"])
@pytest.mark.parametrize("change", RESNETS, ids=str)
@pytest.mark.thorough
def test_every_resnet_of_ours_goes_out_and_comes_back(change, kind):
    spec = fields.expand(resnet.ResNet, change, "encoder")
    module = fields.build(resnet.ResNet, spec, "encoder")
    params, stats = models.init(module, jax.random.PRNGKey(0), *module.example()[0], train=False)
    tree = {"encoder": params, "stats": {"encoder": stats}}
    _, config, arrays = layouts.export(kind, {"encoder": {"name": "resnet", **spec}}, tree)
    again, theirs = convert.recognise(kind, config, arrays)
    images = jax.random.normal(jax.random.PRNGKey(1), (2, 64, 64, 3))
    want = models.apply(module, params, stats, images, train=False)[0]
    got = models.apply(layouts.modules(again)["encoder"], theirs["encoder"], theirs["stats"]["encoder"], images, train=False)[0]
    np.testing.assert_array_equal(got["patches"], want["patches"])
    np.testing.assert_array_equal(got.get("embedding", 0), want.get("embedding", 0))


@pytest.mark.parametrize("name, scale", [("clip", ("logit_scale",)), ("siglip", ("logit_scale", "logit_bias"))])
@pytest.mark.thorough
def test_two_towers_of_ours_go_out_and_come_back(name, scale):
    size = dict(width=32, depth=2, heads=2, mlp_dim=64)
    if name == "clip":
        image = dict(size, class_position=True, patch_bias=False, first_norm=True, last_norm="pooled", out=16)
        words = dict(size, causal=True, pool="eot", out=16)
    else:
        image, words = dict(size, class_token=False, pool="map"), dict(size, pool="last", out=32, out_bias=True)
    image |= dict(image_size=32, patch_size=8)
    parts = {
        "encoder": {"name": "vit", **fields.expand(vit.ViT, image, "encoder")},
        "text": {"name": "text", **fields.expand(text.TextTransformer, dict(words, vocab_size=50, length=7), "text")},
    }
    own = layouts.modules(layouts.Layout(parts, ()))
    rng = jax.random.PRNGKey(0)
    tree = {part: models.init(m, rng, *m.example()[0], train=False, **m.example()[1])[0] for part, m in own.items()}
    tree |= {part: np.float32(i + 1) for i, part in enumerate(scale)}
    layout, config, arrays = layouts.export("hf", parts, tree)
    assert layout.name == f"hf:{name}"
    _, back = convert.recognise("hf", config, arrays)
    want, got = (dict(layouts.flatten(jax.tree.map(np.asarray, t))) for t in (tree, back))
    assert want.keys() == got.keys() and all(np.array_equal(want[k], got[k]) for k in want)


def test_what_a_code_base_cannot_express_is_said():
    spec = fields.expand(vit.ViT, dict(width=32, depth=1, heads=2, mlp_dim=64, image_size=32, patch_size=8, pool="map"), "encoder")
    module = fields.build(vit.ViT, spec, "encoder")
    with pytest.raises(UserError, match="to_vit: encoder.pool='map'.*to_dinov2: it has LayerScale"):
        layouts.export("hf", {"encoder": {"name": "vit", **spec}}, {"encoder": initial(module)})


def a_run(start, **encoder_changes):
    spec = dict(
        name="vit",
        image_size=48,
        patch_size=8,
        width=48,
        depth=3,
        heads=4,
        mlp_dim=96,
        class_position=True,
        layer_scale=1.0,
        mask_token=True,
    )
    return configs.make(
        steps=1,
        batch=8,
        method=dict(name="dino", encoder=spec | encoder_changes, head=dict(name="dino_head", hidden=16, bottleneck=8, out=12)),
        data=dict(source="synthetic:n=16,height=48,width=48,classes=3", label="label", image_size=48, crop="device"),
        augment={"views": dict(count=2, size=48)},
        optim=dict(name="adamw", lr=0.0),
        init=dict(checkpoint=str(start)),
    )


def test_a_run_starts_from_it_with_positions_resized_and_its_teacher_equal(ours):
    config = a_run(ours)
    built = configs.build(config)
    mesh = sharding.make_mesh({"data": 1}, batch=8, devices=jax.devices()[:1])
    state = program.make(config, built, mesh, program.example(built, 8), 16).init()
    start = encoder.restore(ours)
    state, report = initialise.warm_start(state, start, "mask_token")
    stored = dict(trees.names(start.public_tree()))
    assert report["resized"] == ["encoder/pos_embed"]
    assert set(report["fresh"]) == {name for name, _ in trees.names(state.params) if name.startswith("head/")} | {"encoder/mask_token"}
    for name in report["taken"]:
        leaf = dict(trees.names(state.params))[name]
        np.testing.assert_array_equal(leaf, dict(trees.names(state.extra["teacher"]))[name], err_msg=name)
        if name in report["resized"]:
            stored[name] = positions.resize(stored[name], (4, 4), (6, 6))
        np.testing.assert_array_equal(leaf, stored[name], err_msg=name)


@pytest.mark.thorough
def test_weights_that_do_not_fit_are_named_before_training(ours, tmp_path):
    with pytest.raises(UserError, match="parameters of another shape, e.g. encoder/transformer/blocks.*config.init.drop"):
        train(a_run(ours, depth=2), tmp_path)
