"""Against the public implementations themselves: `bash launch/test_interop.sh` makes an environment with torch and runs this once.

Each family: a model of transformers with random weights, saved; converted, run, compared; exported, loaded with no key missing or left
over, compared again. Without torch these tests are skipped, and say so.
"""

import argparse
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: bash launch/test_interop.sh makes an environment that has it")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: bash launch/test_interop.sh installs it")

import jax  # noqa: E402

from ssljax import convert, encoder, losses, models  # noqa: E402
from ssljax.errors import UserError  # noqa: E402

VIT = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, image_size=32, patch_size=8)
DECODER = dict(decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=4, decoder_intermediate_size=64)
TEXT = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=99)
STACK = {k: v for k, v in VIT.items() if k not in ("image_size", "patch_size")}
RESNET = dict(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 1], layer_type="bottleneck")
FAMILIES = {
    "vit": ("ViTModel", "ViTConfig", VIT),
    "vit_classifier": ("ViTForImageClassification", "ViTConfig", VIT | dict(num_labels=7, qkv_bias=False)),
    "simmim": ("ViTForMaskedImageModeling", "ViTConfig", VIT | dict(encoder_stride=8)),
    "deit": ("DeiTModel", "DeiTConfig", VIT),
    "dinov2": ("Dinov2Model", "Dinov2Config", VIT | dict(mlp_ratio=2)),
    "dinov2_swiglu": ("Dinov2Model", "Dinov2Config", VIT | dict(mlp_ratio=2, use_swiglu_ffn=True)),
    "dinov2_registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", VIT | dict(mlp_ratio=2, num_register_tokens=3)),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", VIT | dict(num_register_tokens=2)),
    "dinov3_gated": ("DINOv3ViTModel", "DINOv3ViTConfig", VIT | dict(num_register_tokens=4, use_gated_mlp=True, hidden_act="silu")),
    "msn": ("ViTMSNModel", "ViTMSNConfig", VIT),
    "ijepa": ("IJepaModel", "IJepaConfig", VIT),
    "beit": ("BeitModel", "BeitConfig", VIT | dict(use_relative_position_bias=True, use_mask_token=True)),
    "beit_absolute": ("BeitModel", "BeitConfig", VIT | dict(use_absolute_position_embeddings=True, use_mean_pooling=False)),
    "data2vec": ("Data2VecVisionModel", "Data2VecVisionConfig", VIT | dict(use_shared_relative_position_bias=True)),
    "mae": ("ViTMAEForPreTraining", "ViTMAEConfig", VIT | DECODER),
    "mae_encoder": ("ViTMAEModel", "ViTMAEConfig", VIT | dict(mask_ratio=0.0)),
    "videomae": ("VideoMAEForPreTraining", "VideoMAEConfig", VIT | DECODER | dict(num_frames=4, tubelet_size=2)),
    "ast": ("ASTModel", "ASTConfig", {k: v for k, v in VIT.items() if k != "image_size"} | dict(max_length=48, num_mel_bins=24)),
    "clip": ("CLIPModel", "CLIPConfig", dict(vision_config=VIT, text_config=TEXT, projection_dim=24)),
    "clip_vision": ("CLIPVisionModel", "CLIPVisionConfig", VIT),
    "siglip": ("SiglipModel", "SiglipConfig", dict(vision_config=VIT, text_config=TEXT | dict(projection_size=64))),
    "blip": ("BlipForImageTextRetrieval", "BlipConfig", dict(vision_config=VIT, text_config=TEXT | dict(encoder_hidden_size=64))),
    "flava": ("FlavaModel", "FlavaConfig", dict(image_config=VIT, text_config=TEXT, multimodal_config=STACK, hidden_size=64)),
    "resnet": ("ResNetModel", "ResNetConfig", RESNET | dict(hidden_sizes=[16, 32, 64], depths=[1, 2, 1])),
    "resnet_basic": ("ResNetForImageClassification", "ResNetConfig", RESNET | dict(layer_type="basic", num_labels=5)),
    "convnext": ("ConvNextModel", "ConvNextConfig", dict(hidden_sizes=[16, 32], depths=[1, 2], num_stages=2)),
    "convnextv2": ("ConvNextV2Model", "ConvNextV2Config", dict(hidden_sizes=[16, 32], depths=[1, 2], num_stages=2)),
    "swin": ("SwinModel", "SwinConfig", dict(image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)),
}  # fmt: skip


def randomised(model):
    """Every parameter away from its initial value, so that a forgotten or swapped one shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.05 + (1.0 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) else 0.0))
        for name, buffer in model.named_buffers():
            if "running_var" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


def inputs_of(model, rng):
    config = model.config
    text = getattr(config, "text_config", None)
    if config.model_type == "audio-spectrogram-transformer":
        return {"input_values": rng.normal(size=(2, config.max_length, config.num_mel_bins)).astype(np.float32)}
    if config.model_type == "videomae":
        return {"pixel_values": rng.normal(size=(2, config.num_frames, 3, 32, 32)).astype(np.float32)}
    out = {"pixel_values": rng.normal(size=(2, 3, 32, 32)).astype(np.float32)}
    if text is not None and not model.__class__.__name__.endswith("VisionModel"):
        out["input_ids"] = rng.integers(5, 90, (2, 12))
    return out


def theirs(model, inputs):
    """The tokens (or the map) in front of any head, of the tower of images."""
    tensors = {k: torch.from_numpy(v) for k, v in inputs.items() if k != "input_ids"}
    headed = (model.base_model_prefix,) if "For" in type(model).__name__ else ()
    tower = next((getattr(model, name) for name in ("vision_model", "image_model", *headed) if hasattr(model, name)), model)
    with torch.no_grad():
        if model.config.model_type == "videomae":
            mask = torch.zeros(2, (model.config.num_frames // 2) * 16, dtype=torch.bool)
            return tower(**tensors, bool_masked_pos=mask).last_hidden_state.numpy()
        if model.config.model_type == "vit_mae":
            noise = torch.arange(16.0).repeat(2, 1)  # nothing is shuffled
            tower.config.mask_ratio = 0.0
            return tower(**tensors, noise=noise).last_hidden_state.numpy()
        return tower(**tensors).last_hidden_state.numpy()


def ours(workdir, inputs):
    loaded = encoder.restore(workdir)
    tree = loaded.public_tree()
    module = loaded.built.method.encoder
    images = inputs.get("pixel_values")
    images = np.moveaxis(images, -3, -1) if images is not None else np.swapaxes(inputs["input_values"], 1, 2)[..., None]
    stats = tree.get("stats", {}).get("encoder", {})
    with jax.default_matmul_precision("highest"):
        return models.apply(module, tree["encoder"], stats, images, train=False)[0]


def compare(outputs, expected):
    if expected.ndim == 4:  # (B, C, h, w)
        got, expected = outputs["patches"], expected.reshape(*expected.shape[:2], -1).swapaxes(1, 2)
    else:
        got = outputs["tokens"] if "tokens" in outputs else outputs["patches"]
    got = np.asarray(got)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_in_and_out_again(family, tmp_path):
    model_name, config_name, settings = FAMILIES[family]
    if not hasattr(transformers, model_name):
        pytest.skip(f"transformers {transformers.__version__} has no {model_name}")
    model = randomised(getattr(transformers, model_name)(getattr(transformers, config_name)(**settings)))
    model.save_pretrained(tmp_path / "public")
    inputs = inputs_of(model, np.random.default_rng(0))
    convert.bring_in(f"hf:{tmp_path / 'public'}", tmp_path / "ours")
    expected = theirs(model, inputs)
    compare(ours(tmp_path / "ours", inputs), expected)
    convert.send_out(tmp_path / "ours", "hf", tmp_path / "back")
    again, told = getattr(transformers, model_name).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told.get("mismatched_keys"), told
    assert np.array_equal(theirs(again.eval(), inputs), expected)


def store(config, where):
    """A checkpoint of random parameters of a config's method."""
    from ssljax import checkpoint, program
    from ssljax import config as configs

    built = configs.build(config)
    raw = program.example(built)
    example = {**raw, "views": raw["image"][:, None].astype(np.float32)}
    params, extra = built.method.init(jax.random.PRNGKey(0), example)
    noise = np.random.default_rng(0)
    params, extra = (jax.tree.map(lambda x: x + 0.05 * noise.random(x.shape).astype(x.dtype), t) for t in (params, extra))
    saver = checkpoint.Checkpoints(where / "checkpoints")
    saver.save(1, {"params": params, "extra": extra}, configs.to_dict(config), {})
    saver.close()


@pytest.mark.parametrize(
    "change", [dict(), dict(out=5, out_bias=True), dict(layer_scale=0.1, registers=2), dict(position="sincos_mae")], ids=str
)
def test_our_own_vit_goes_out(change, tmp_path):
    """A checkpoint of ours, never public: to transformers and to timm, with nothing missing, and the same tokens."""
    from ssljax import config as configs

    spec = dict(name="vit", width=64, depth=2, heads=1, mlp_dim=128, image_size=32, patch_size=8, **change)
    config = configs.make(
        method=dict(name="supervised", encoder=spec), augment={"views": dict(count=1, size=32)}, optim=dict(name="adamw", lr=1e-3),
        data=dict(source="scenes/photo", image_size=32),
    )  # fmt: skip
    store(config, tmp_path / "ours")
    inputs = {"pixel_values": np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)}
    outputs = ours(tmp_path / "ours", inputs)
    convert.send_out(tmp_path / "ours", "hf", tmp_path / "hf")
    name = json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"][0]
    model, told = getattr(transformers, name).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"], told
    compare(outputs, theirs(model.eval(), inputs))
    assert change.get("out") or convert.check(f"hf:{tmp_path / 'hf'}", tmp_path / "ours") <= 1e-4

    timm = pytest.importorskip("timm", reason="timm is not installed")
    from safetensors.torch import load_file

    convert.send_out(tmp_path / "ours", "timm", tmp_path / "timm")
    settings = json.loads((tmp_path / "timm" / "config.json").read_text())
    model = timm.models.vision_transformer.VisionTransformer(
        **settings["model_args"], global_pool=settings["global_pool"], norm_layer=torch.nn.LayerNorm
    )
    told = model.load_state_dict(load_file(tmp_path / "timm" / "model.safetensors"), strict=True)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = settings["norm_eps"]
    with torch.no_grad():
        compare(outputs, model.eval().forward_features(torch.from_numpy(inputs["pixel_values"])).numpy())


def test_our_own_resnet_goes_to_timm(tmp_path):
    from ssljax import config as configs
    from ssljax.models import resnet

    timm = pytest.importorskip("timm", reason="timm is not installed")
    config = configs.make(
        method=dict(name="supervised", encoder=resnet.size(18)), augment={"views": dict(count=1, size=64)},
        optim=dict(name="adamw", lr=1e-3), data=dict(source="scenes/photo", image_size=64),
    )  # fmt: skip
    store(config, tmp_path / "ours")
    convert.send_out(tmp_path / "ours", "timm", tmp_path / "timm")
    assert convert.check(f"timm:{tmp_path / 'timm'}", tmp_path / "ours") <= 1e-4
    model = timm.create_model("resnet18", pretrained=False, num_classes=0, checkpoint_path=str(tmp_path / "timm" / "model.safetensors"))
    assert isinstance(model, torch.nn.Module)
    convert.send_out(tmp_path / "ours", "hf", tmp_path / "hf")
    _, told = transformers.ResNetModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert convert.check(f"hf:{tmp_path / 'hf'}", tmp_path / "ours") <= 1e-4


@pytest.mark.parametrize("method", ["clip", "siglip"])
def test_our_own_towers_go_out(method, tmp_path):
    from ssljax import config as configs

    size = dict(width=32, depth=2, heads=2, mlp_dim=64)
    image, text = dict(size, class_token=False, pool="map"), dict(size, pool="last", out=32, out_bias=True)
    if method == "clip":
        image = dict(size, class_position=True, patch_bias=False, first_norm=True, last_norm="pooled", out=16)
        text = dict(size, causal=True, pool="eot", out=16)
    config = configs.make(
        method=dict(name=method, encoder=dict(image, name="vit", image_size=32, patch_size=8),
                    text=dict(text, name="text", vocab_size=99, length=12)),
        augment={"views": dict(count=1, size=32)}, optim=dict(name="adamw", lr=1e-3),
        data=dict(source="scenes/photo", image_size=32, tokenizer="words:99", caption="caption"),
    )  # fmt: skip
    store(config, tmp_path / "ours")
    convert.send_out(tmp_path / "ours", "hf", tmp_path / "hf")
    name = json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"][0]
    model, told = getattr(transformers, name).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"], told
    inputs = inputs_of(model, np.random.default_rng(0))
    compare(ours(tmp_path / "ours", inputs), theirs(model.eval(), inputs))
    loaded = encoder.restore(tmp_path / "ours")
    tower, params = loaded.built.method.text, loaded.public_tree()["text"]
    with jax.default_matmul_precision("highest"):
        got = models.apply(tower, params, {}, inputs["input_ids"], train=False)[0]["embedding"]
    with torch.no_grad():
        want = model.get_text_features(torch.from_numpy(inputs["input_ids"]))
    want = getattr(want, "pooler_output", want).numpy()
    assert np.abs(np.asarray(got) - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("wrapped", [False, True])
def test_torch_files_are_read_as_weights_only(wrapped, tmp_path):
    """A .pth as DINO's authors write it, with its teacher in a dictionary; and one that would run code is refused."""
    model = randomised(transformers.ViTModel(transformers.ViTConfig(**VIT)))
    model.save_pretrained(tmp_path / "public")
    state = model.state_dict()
    torch.save({"teacher": state, "epoch": 3} if wrapped else state, tmp_path / "weights.pth")
    arrays = convert.read_arrays(tmp_path / "weights.pth")
    assert arrays.keys() == state.keys() and all(np.array_equal(arrays[k], state[k].numpy()) for k in state)
    torch.save({"teacher": state, "args": argparse.Namespace(lr=1)}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="holds more than weights"):
        convert.read_arrays(tmp_path / "code.pth")


def test_siglip2_takes_patches_where_ours_takes_pictures(tmp_path):
    vision = {k: v for k, v in VIT.items() if k != "image_size"} | dict(num_patches=16)
    config = transformers.Siglip2Config(vision_config=vision, text_config=TEXT | dict(projection_size=64))
    model = randomised(transformers.Siglip2Model(config))
    model.save_pretrained(tmp_path / "public")
    convert.bring_in(f"hf:{tmp_path / 'public'}", tmp_path / "ours")
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    patches = torch.from_numpy(np.array(losses.patchify(images, 8)))
    with torch.no_grad():
        shapes = torch.tensor([[4, 4], [4, 4]])
        expected = model.vision_model(pixel_values=patches, pixel_attention_mask=torch.ones(2, 16), spatial_shapes=shapes)
    outputs = ours(tmp_path / "ours", {"pixel_values": np.moveaxis(images, -1, 1)})
    compare(outputs, expected.last_hidden_state.numpy())
    pooled = expected.pooler_output.numpy()
    assert np.abs(np.asarray(outputs["pooled"]) - pooled).max() <= 1e-4 * np.abs(pooled).max()
    convert.send_out(tmp_path / "ours", "hf", tmp_path / "back")
    _, told = transformers.Siglip2Model.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
