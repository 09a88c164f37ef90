"""Hugging Face transformers: config.json and model.safetensors of image encoders, and of what was pretrained with them."""

import numpy as np

from ssljax import layouts as to
from ssljax.layouts import Layout, blocks
from ssljax.layouts.torch import with_table


def side(size):
    """An image size that transformers give as a number or as [height, width] -> pixels."""
    return size if isinstance(size, int) else size[0]


def stack(config, **changes):
    """The fields of blocks that every config.json has."""
    out = dict(
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp_dim=config.get("intermediate_size") or int(config["hidden_size"] * config.get("mlp_ratio", 4)),
        activation=to.ACTIVATIONS[config.get("hidden_act", "gelu")],
        norm_eps=config["layer_norm_eps"],
    )
    return out | changes


def image(config, **changes):
    """The fields of a ViT."""
    fields = dict(name="vit", image_size=side(config["image_size"]), patch_size=side(config["patch_size"]), class_position=True)
    return fields | stack(config) | changes


def vit_rules(
    at,
    shapes,
    fields,
    part="encoder",
    layers="encoder.layer.{i}.",
    last="layernorm",
    names=blocks.HF_VIT,
    position="embeddings.position_embeddings",
):
    """Rules of transformers' ViT and its many copies, under the prefix `at`; `fields` says which of its parts are there."""
    ours, embeddings = part, f"{at}embeddings."
    out = to.conv(f"{embeddings}patch_embeddings.projection", f"{ours}/patch_embed", bias=True)
    prefix = []
    if fields.get("class_token", True):
        out += to.same(f"{embeddings}cls_token", f"{ours}/cls_token")
        prefix.append("cls_position")
    if fields.get("distill_token"):
        out += to.same(f"{embeddings}distillation_token", f"{ours}/dist_token")
        prefix.append("dist_position")
    if fields.get("mask_token"):
        their = shapes[f"{embeddings}mask_token"]  # (1, D) of DINOv2, (1, 1, D) of the others
        out += to.shaped(f"{embeddings}mask_token", f"{ours}/mask_token", their, (1, 1, their[-1]))
    if fields.get("registers"):
        out += to.same(f"{embeddings}register_tokens", f"{ours}/registers")
    if fields.get("position", "learned") == "learned":
        out += to.position_table(f"{at}{position}", ours, prefix)
    qkv_bias = fields.get("qkv_bias", "all")
    out += blocks.rules(at + layers, f"{ours}/transformer", fields["depth"], fields["heads"], names, qkv_bias=qkv_bias)
    if fields.get("last_norm", "tokens") == "tokens":
        out += to.norm(f"{at}{last}", f"{ours}/transformer/norm")
    if fields.get("pooler"):
        out += to.linear(f"{at}pooler.dense", f"{ours}/pooler")
    return out


def classifier(shapes, fields, name="classifier"):
    """Rules of a linear head on the pooled vector; fills in the field `out`."""
    if f"{name}.weight" not in shapes:
        return []
    fields |= dict(out=shapes[f"{name}.weight"][0], out_bias=True)
    return to.linear(name, "encoder/out")


def bias_of(config, key="qkv_bias"):
    return "all" if config.get(key, True) else "none"


def vit(config, shapes):
    """ViTModel, ViTForImageClassification, ViTForMaskedImageModeling (SimMIM); DeiT and ViT-MSN, which differ by a token."""
    at = to.base(shapes, "vit.", "deit.")
    fields = image(config, qkv_bias=bias_of(config), mask_token=f"{at}embeddings.mask_token" in shapes)
    fields |= dict(pooler=f"{at}pooler.dense.weight" in shapes, distill_token=f"{at}embeddings.distillation_token" in shapes)
    rules = vit_rules(at, shapes, fields)
    parts = {"encoder": fields}
    if "decoder.0.weight" in shapes:  # SimMIM: a 1 x 1 convolution and a pixel shuffle, whose channels are (colour, row, column)
        size = config.get("encoder_stride", fields["patch_size"])
        parts["decoder"] = dict(name="pixel_shuffle", patch_size=size, example=to.inputs((1, 4, fields["width"])))
        rules += shuffled("decoder.0", "decoder/pixels", size)
    rules += classifier(shapes, fields)
    return Layout(parts, tuple(rules), normalise=to.HALF)


def shuffled(theirs, ours, size, channels=3):
    """A 1 x 1 convolution in front of torch's pixel shuffle -> a linear layer to (row, column, colour)."""

    def read(w):
        return (w.reshape(channels, size, size, -1).transpose(3, 1, 2, 0).reshape(w.shape[1], -1),)

    def write(w):
        return (w.reshape(-1, size, size, channels).transpose(3, 1, 2, 0).reshape(-1, w.shape[0], 1, 1),)

    def read_bias(b):
        return (b.reshape(channels, size, size).transpose(1, 2, 0).reshape(-1),)

    def write_bias(b):
        return (b.reshape(size, size, channels).transpose(2, 0, 1).reshape(-1),)

    weight = to.Rule((f"{theirs}.weight",), (f"{ours}/kernel",), read, write)
    return [weight, to.Rule((f"{theirs}.bias",), (f"{ours}/bias",), read_bias, write_bias)]


def msn(config, shapes):
    """ViTMSNModel: a ViT without a pooler."""
    at = to.base(shapes, "vit.")
    fields = image(config, qkv_bias=bias_of(config), mask_token=f"{at}embeddings.mask_token" in shapes)
    rules = vit_rules(at, shapes, fields) + classifier(shapes, fields)
    return Layout({"encoder": fields}, tuple(rules))


def ijepa(config, shapes):
    """IJepaModel: no class token."""
    at = to.base(shapes, "ijepa.")
    fields = image(config, qkv_bias=bias_of(config), class_token=False, class_position=False, pool="gap")
    fields |= dict(mask_token=f"{at}embeddings.mask_token" in shapes)
    rules = vit_rules(at, shapes, fields) + classifier(shapes, fields)
    return Layout({"encoder": fields}, tuple(rules))


DINOV2 = dict(
    blocks.HF_VIT, norm1="norm1", norm2="norm2", fc1="mlp.fc1", fc2="mlp.fc2", scale1="layer_scale1.lambda1", scale2="layer_scale2.lambda1"
)


def dinov2(config, shapes):
    """Dinov2Model and Dinov2WithRegistersModel."""
    at = to.base(shapes, "dinov2.", "dinov2_with_registers.")
    registers = f"{at}embeddings.register_tokens"
    fields = image(config, mask_token=f"{at}embeddings.mask_token" in shapes, layer_scale=1.0, qkv_bias=bias_of(config))
    fields |= dict(mlp_dim=int(config["hidden_size"] * config["mlp_ratio"]), registers=shapes[registers][1] if registers in shapes else 0)
    fields |= dict(resize="bicubic_antialias" if fields["registers"] else "bicubic")
    names = DINOV2
    if config.get("use_swiglu_ffn"):
        names = {k: v for k, v in names.items() if k != "fc1"} | dict(gate_fused="mlp.weights_in", fc2="mlp.weights_out")
        hidden = (int(fields["mlp_dim"] * 2 / 3) + 7) // 8 * 8
        fields |= dict(mlp_dim=hidden, gated=True, activation="silu")
    if "classifier.weight" in shapes:  # on the class token and the mean of the patches, concatenated
        fields |= dict(pool="cls_gap")
    rules = vit_rules(at, shapes, fields, names=names) + classifier(shapes, fields)
    return Layout({"encoder": fields}, tuple(rules))


def dinov3(config, shapes):
    """DINOv3ViTModel: rotary positions, registers, no bias of the keys."""
    biases = {(True, False, True): "no_key", (True, True, True): "all", (False, False, False): "none"}
    flags = tuple(config.get(f"{name}_bias", default) for name, default in (("query", True), ("key", False), ("value", True)))
    fields = image(config, class_position=False, position="rope", rope_theta=config.get("rope_theta", 100.0), layer_scale=1.0)
    fields |= dict(
        registers=config.get("num_register_tokens", 0), mask_token=True, qkv_bias=biases[flags], gated=config.get("use_gated_mlp", False)
    )
    at = to.base(shapes, "dinov3_vit.", "model.")
    layer = f"{at}layer." if any(name.startswith(f"{at}layer.") for name in shapes) else f"{at}model.layer."
    names = dict(
        norm1="norm1", q="attention.q_proj", k="attention.k_proj", v="attention.v_proj", proj="attention.o_proj",
        norm2="norm2", fc1="mlp.up_proj", fc2="mlp.down_proj", scale1="layer_scale1.lambda1", scale2="layer_scale2.lambda1",
    )  # fmt: skip
    if fields["gated"]:
        names["gate"] = "mlp.gate_proj"
    embeddings = f"{at}embeddings."
    rules = [
        *to.conv(f"{embeddings}patch_embeddings", "encoder/patch_embed", bias=True),
        *to.same(f"{embeddings}cls_token", "encoder/cls_token"),
        *to.same(f"{embeddings}mask_token", "encoder/mask_token"),
        *(to.same(f"{embeddings}register_tokens", "encoder/registers") if fields["registers"] else []),
        *blocks.rules(f"{layer}{{i}}.", "encoder/transformer", fields["depth"], fields["heads"], names, qkv_bias=fields["qkv_bias"]),
        *to.norm(f"{at}norm", "encoder/transformer/norm"),
    ]
    return Layout({"encoder": fields}, tuple(rules))


def beit(config, shapes):
    """BeitModel, BeitForMaskedImageModeling, BeitForImageClassification, and Data2VecVision's, which are the same."""
    at = to.base(shapes, "beit.", "data2vec_vision.")
    absolute, shared = config.get("use_absolute_position_embeddings"), config.get("use_shared_relative_position_bias")
    position = (
        "learned" if absolute else "relative_shared" if shared else "relative" if config.get("use_relative_position_bias") else "none"
    )
    masked = "lm_head.weight" in shapes
    mean = config.get("use_mean_pooling", True)
    fields = image(
        config, position=position, class_position=bool(absolute), qkv_bias="no_key", layer_scale=config["layer_scale_init_value"]
    )
    fields |= dict(mask_token=f"{at}embeddings.mask_token" in shapes, pool="gap" if mean and not masked else "cls")
    fields |= dict(last_norm="tokens" if masked or not mean else "pooled" if f"{at}pooler.layernorm.weight" in shapes else "none")
    names = dict(blocks.HF_VIT) | (dict(scale1="lambda_1", scale2="lambda_2") if fields["layer_scale"] else {})
    own = "layernorm" if masked and f"{at}layernorm.weight" not in shapes else f"{at}layernorm"
    rules = vit_rules(at, shapes, dict(fields, last_norm="none"), names=names)
    if fields["last_norm"] == "tokens":
        rules += to.norm(own, "encoder/transformer/norm")
    if fields["last_norm"] == "pooled":
        rules += to.norm(f"{at}pooler.layernorm", "encoder/pool_norm")
    if position == "relative":
        table = f"{at}encoder.layer.{{i}}.attention.attention.relative_position_bias.relative_position_bias_table"
        rules += to.same(table, "encoder/transformer/blocks/attn/relative", fields["depth"])
    if position == "relative_shared":
        rules += to.same(f"{at}encoder.relative_position_bias.relative_position_bias_table", "encoder/relative")
    parts = {"encoder": fields}
    if masked:
        parts["decoder"] = dict(name="linear_head", out=shapes["lm_head.weight"][0], example=to.inputs((1, 4, fields["width"])))
        rules += to.linear("lm_head", "decoder/linear")
    rules += classifier(shapes, fields)
    return Layout(parts, tuple(rules), normalise=to.HALF)


def mae(config, shapes):
    """ViTMAEModel and ViTMAEForPreTraining; the table of positions is the file's."""
    at = to.base(shapes, "vit.")
    fields = image(config, qkv_bias=bias_of(config))
    rules = vit_rules(at, shapes, fields)
    parts, method = {"encoder": fields}, {"name": "supervised"}
    if "decoder.decoder_embed.weight" in shapes:
        depth, heads = config["decoder_num_hidden_layers"], config["decoder_num_attention_heads"]
        parts["decoder"] = dict(
            stack(config), name="mae_decoder", patch_size=fields["patch_size"], width=config["decoder_hidden_size"], depth=depth,
            heads=heads,
            mlp_dim=config["decoder_intermediate_size"], position="learned", qkv_bias=fields["qkv_bias"],
            example=to.inputs((1, 1, fields["width"]), (1, shapes["decoder.decoder_pos_embed"][1] - 1), ids=(1,), cls=(1, fields["width"])),
        )  # fmt: skip
        rules += [
            *to.linear("decoder.decoder_embed", "decoder/embed"),
            *to.same("decoder.mask_token", "decoder/mask_token"),
            *to.position_table("decoder.decoder_pos_embed", "decoder"),
            *blocks.rules("decoder.decoder_layers.{i}.", "decoder/transformer", depth, heads, blocks.HF_VIT, qkv_bias=fields["qkv_bias"]),
            *to.norm("decoder.decoder_norm", "decoder/transformer/norm"),
            *to.linear("decoder.decoder_pred", "decoder/pixels"),
        ]
        if "decoder.decoder_encoder.layer.0.output.dense.weight" in shapes:
            rules = [rename(rule, "decoder.decoder_layers.", "decoder.decoder_encoder.layer.") for rule in rules]
        method = dict(name="mae", mask_ratio=config.get("mask_ratio", 0.75), norm_pix_loss=config.get("norm_pix_loss", False))
    return Layout(parts, tuple(rules), method=method)


def rename(rule, old, new):
    """The rule for a file that spells `old` as `new`."""
    return to.dataclasses.replace(rule, theirs=tuple(name.replace(old, new) for name in rule.theirs))


def videomae(config, shapes):
    """VideoMAEModel and VideoMAEForPreTraining: tubes of patches, fixed positions, no bias of the keys."""
    at = to.base(shapes, "videomae.")
    biases = "no_key" if config.get("qkv_bias", config.get("qv_bias", True)) else "none"
    pretraining = "encoder_to_decoder.weight" in shapes
    mean = config.get("use_mean_pooling", True)
    fields = image(config, position="sincos_1d", class_token=False, class_position=False, tubelet=config["tubelet_size"], qkv_bias=biases)
    fields |= dict(pool="gap", frames=config["num_frames"])
    fields |= dict(
        last_norm="pooled"
        if "fc_norm.weight" in shapes
        else "tokens"
        if f"{at}layernorm.weight" in shapes
        else "none"
        if mean
        else "tokens"
    )
    names = dict(blocks.HF_VIT, q_bias="attention.attention.q_bias", v_bias="attention.attention.v_bias")
    rules = vit_rules(at, shapes, fields, names=names)
    if fields["last_norm"] == "pooled":
        rules += to.norm("fc_norm", "encoder/pool_norm")
    parts = {"encoder": fields}
    if pretraining:
        depth, heads = config["decoder_num_hidden_layers"], config["decoder_num_attention_heads"]
        parts["decoder"] = dict(
            stack(config), name="mae_decoder", patch_size=fields["patch_size"], tubelet=fields["tubelet"],
            width=config["decoder_hidden_size"], depth=depth, heads=heads, mlp_dim=config["decoder_intermediate_size"],
            position="sincos_1d", embed_bias=False, qkv_bias=biases,
            example=to.inputs((1, 1, fields["width"]), (1, 4), ids=(1,)),
        )  # fmt: skip
        rules += [
            *to.linear("encoder_to_decoder", "decoder/embed", bias=False),
            *to.same("mask_token", "decoder/mask_token"),
            *blocks.rules("decoder.decoder_layers.{i}.", "decoder/transformer", depth, heads, names, qkv_bias=biases),
            *to.norm("decoder.norm", "decoder/transformer/norm"),
            *to.linear("decoder.head", "decoder/pixels"),
        ]
    rules += classifier(shapes, fields)
    return Layout(parts, tuple(rules))


def ast(config, shapes):
    """ASTModel: a spectrogram, mel bins by frames, in overlapping patches; a class and a distillation token."""
    at = to.base(shapes, "audio_spectrogram_transformer.")
    patch, stride = side(config["patch_size"]), (config["frequency_stride"], config["time_stride"])
    table = tuple((n - patch) // step + 1 for n, step in zip((config["num_mel_bins"], config["max_length"]), stride, strict=True))
    fields = dict(
        name="vit", patch_size=patch, class_position=True, distill_token=True, pool="cls_dist", stride=stride, table=table, channels=1
    )
    fields |= stack(config, qkv_bias=bias_of(config))
    rules = vit_rules(at, shapes, fields)
    if "classifier.dense.weight" in shapes:
        fields |= dict(out=shapes["classifier.dense.weight"][0], out_bias=True, last_norm="both")
        rules += to.norm("classifier.layernorm", "encoder/pool_norm") + to.linear("classifier.dense", "encoder/out")
    return Layout({"encoder": fields}, tuple(rules), normalise=dict(mean=(0.0,), std=(1.0,)))


# -------------------------------------------------------------------------------------------------------------------- out
def to_stack(fields):
    """The keys of a config.json that every stack of blocks has."""
    names = {ours: theirs for theirs, ours in reversed(to.ACTIVATIONS.items())}
    names |= {"gelu_tanh": "gelu_pytorch_tanh"}
    return dict(
        hidden_size=fields["width"], num_hidden_layers=fields["depth"], num_attention_heads=fields["heads"],
        intermediate_size=fields["mlp_dim"], hidden_act=names[fields["activation"]], layer_norm_eps=fields["norm_eps"],
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.02,
    )  # fmt: skip


def to_vit(parts, tree):
    """Our ViT -> ViTModel, or ViTForImageClassification with a head. ViTModel's pooler, which ours does not have, is written as zeros."""
    fields, tree = with_table(parts["encoder"], tree)
    if fields["layer_scale"] or fields["registers"]:
        raise to.Inexpressible("it has no LayerScale and no registers")
    fields = fields | dict(mask_token=False)
    at, pooled = ("vit.", False) if fields["out"] else ("", True)
    if pooled and not fields["pooler"]:
        zeros = dict(kernel=np.zeros((fields["width"],) * 2, np.float32), bias=np.zeros(fields["width"], np.float32))
        fields, tree = fields | dict(pooler=True), {**tree, "encoder": {**tree["encoder"], "pooler": zeros}}
    rules = vit_rules(at, {}, fields) + (to.linear("classifier", "encoder/out") if fields["out"] else [])
    config = dict(
        to_stack(fields), model_type="vit", architectures=["ViTForImageClassification" if fields["out"] else "ViTModel"],
        image_size=fields["image_size"], patch_size=fields["patch_size"], num_channels=fields["channels"],
        qkv_bias=fields["qkv_bias"] == "all",
        **(dict(id2label={str(i): str(i) for i in range(fields["out"])}) if fields["out"] else {}),
    )  # fmt: skip
    return "hf:vit", config, {"encoder": fields}, tree, rules


def to_dinov2(parts, tree):
    """Our ViT with LayerScale -> Dinov2Model, or Dinov2WithRegistersModel. A mask token that ours does not have is written as zeros."""
    fields, tree = with_table(parts["encoder"], tree)
    if not fields["layer_scale"] or fields["gated"]:
        raise to.Inexpressible("it has LayerScale, and no gate unless it is DINOv2's own")
    width, registers = fields["width"], fields["registers"]
    if not fields["mask_token"]:
        tree = {**tree, "encoder": {**tree["encoder"], "mask_token": np.zeros((1, 1, width), np.float32)}}
        fields = fields | dict(mask_token=True)
    name = "dinov2_with_registers" if registers else "dinov2"
    ratio, rest = divmod(fields["mlp_dim"], width)
    if rest:
        raise to.Inexpressible(f"its MLP is a whole number of times as wide as a token, not {fields['mlp_dim']} / {width}")
    names = DINOV2
    rules = vit_rules("", {"embeddings.mask_token": (1, width)}, fields, names=names)
    rules += to.linear("classifier", "encoder/out") if fields["out"] else []
    config = dict(
        to_stack(fields), model_type=name, architectures=["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        image_size=fields["image_size"], patch_size=fields["patch_size"], num_channels=fields["channels"],
        mlp_ratio=ratio,
        qkv_bias=fields["qkv_bias"] == "all", use_swiglu_ffn=False, layerscale_value=fields["layer_scale"],
        **(dict(num_register_tokens=registers) if registers else {}),
    )  # fmt: skip
    return f"hf:{name}", config, {"encoder": fields}, tree, rules


NAMES = {
    "hf:vit": vit, "hf:deit": vit, "hf:vit_msn": msn, "hf:ijepa": ijepa, "hf:dinov2": dinov2, "hf:dinov2_with_registers": dinov2,
    "hf:dinov3_vit": dinov3, "hf:beit": beit, "hf:data2vec-vision": beit, "hf:vit_mae": mae, "hf:videomae": videomae,
    "hf:audio-spectrogram-transformer": ast,
}  # fmt: skip
EXPORTS = {"hf": (to_vit, to_dinov2)}
