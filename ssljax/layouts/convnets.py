"""Convolutional networks and heads of every code base: ResNet, ConvNeXt, lightly's and DINO's projection heads.

Only a config.json of transformers tells sizes; all else is read off the shapes.
"""

import re

from ssljax import layouts as to
from ssljax.errors import UserError
from ssljax.layouts import Layout
from ssljax.layouts.hf import classifier, side
from ssljax.layouts.torch import depth_of


def depths(shapes, at):
    """Layers of each stage where names go like at.0.layers.3.: `at` is a regex with groups for both numbers. -> tuple of int."""
    numbers = [(int(m[1]), int(m[2])) for name in shapes if (m := re.match(at, name))]
    if not numbers:
        raise KeyError(at)
    return tuple(1 + max(j for i, j in numbers if i == stage) for stage in sorted({i for i, _ in numbers}))


# --------------------------------------------------------------------------------------------------------------------- ResNet
def residual(theirs, shapes, ours, convs, shortcut):
    """Rules of one block. convs, shortcut: (name of the convolution, name of the BatchNorm) behind the prefix `theirs`."""
    out = []
    for i, (conv, norm) in enumerate(convs, 1):
        out += to.conv(theirs + conv, f"{ours}/conv{i}") + to.batch_norm(theirs + norm, f"{ours}/bn{i}")
    if f"{theirs}{shortcut[0]}.weight" in shapes:
        out += to.conv(theirs + shortcut[0], f"{ours}/downsample_conv") + to.batch_norm(theirs + shortcut[1], f"{ours}/downsample_bn")
    return out


def only_relu(activation):
    if (activation or "relu") != "relu":
        raise UserError(f"a ResNet with the activation {activation!r}: ours have relu")


def hf_resnet(config, shapes):
    """ResNetModel and ResNetForImageClassification."""
    only_relu(config.get("hidden_act"))
    at = to.base(shapes, "resnet.")
    stages, bottleneck = tuple(config["depths"]), config.get("layer_type", "bottleneck") == "bottleneck"
    fields = dict(
        name="resnet", stages=stages, bottleneck=bottleneck, widths=tuple(config["hidden_sizes"]), stem_width=config["embedding_size"],
        first_stride=2 if config.get("downsample_in_first_stage") else 1, stride_first=config.get("downsample_in_bottleneck", False),
        example=to.inputs((1, 64, 64, config.get("num_channels", 3))),
    )  # fmt: skip
    stem = f"{at}embedder.embedder."
    rules = to.conv(f"{stem}convolution", "encoder/conv1") + to.batch_norm(f"{stem}normalization", "encoder/bn1")
    convs = [(f"layer.{i}.convolution", f"layer.{i}.normalization") for i in range(3 if bottleneck else 2)]
    for stage, blocks in enumerate(stages):
        for block in range(blocks):
            theirs, ours = f"{at}encoder.stages.{stage}.layers.{block}.", f"encoder/layer{stage + 1}_{block}"
            rules += residual(theirs, shapes, ours, convs, ("shortcut.convolution", "shortcut.normalization"))
    return Layout({"encoder": fields}, tuple(rules + classifier(shapes, fields, "classifier.1")))


def resnet(config, shapes):
    """timm's and torchvision's ResNet, ResNeXt and Wide ResNet: conv1, bn1, layer1.0.conv1, layer1.0.downsample.0, fc."""
    only_relu(config.get("act_layer"))
    stem_width, channels, kernel, _ = shapes["conv1.weight"]
    stages = depths(shapes, r"layer(\d+)\.(\d+)\.conv1\.weight$")
    bottleneck = "layer1.0.conv3.weight" in shapes
    last = "conv3" if bottleneck else "conv2"
    inner, per_group = shapes["layer1.0.conv2.weight"][:2]
    widths = tuple(shapes[f"layer{i}.0.{last}.weight"][0] for i in range(1, len(stages) + 1))
    fields = dict(
        name="resnet", stages=stages, bottleneck=bottleneck, widths=widths, stem_width=stem_width,
        expansion=widths[0] // inner if bottleneck else 4, groups=inner // per_group if bottleneck else 1,
        stem="imagenet" if kernel == 7 else "cifar", example=to.inputs((1, 64, 64, channels)),
    )  # fmt: skip
    rules = to.conv("conv1", "encoder/conv1") + to.batch_norm("bn1", "encoder/bn1")
    convs = [(f"conv{i}", f"bn{i}") for i in range(1, 4 if bottleneck else 3)]
    for stage, blocks in enumerate(stages, 1):
        for block in range(blocks):
            rules += residual(f"layer{stage}.{block}.", shapes, f"encoder/layer{stage}_{block}", convs, ("downsample.0", "downsample.1"))
    return Layout({"encoder": fields}, tuple(rules + head(shapes, fields, "fc")))


def head(shapes, fields, name):
    """Rules of a linear head with or without a bias, as torch files have it; fills in `out` and `out_bias`."""
    if f"{name}.weight" not in shapes:
        return []
    fields |= dict(out=shapes[f"{name}.weight"][0], out_bias=f"{name}.bias" in shapes)
    return to.linear(name, "encoder/out", bias=fields["out_bias"])


# ------------------------------------------------------------------------------------------------------------------- ConvNeXt
# What each code base calls the layers of a block, behind its prefix, and of the rest.
AUTHORS = dict(conv="dwconv", norm="norm", fc1="pwconv1", fc2="pwconv2", scale="gamma", grn="grn.gamma", grn_bias="grn.beta")
HF = dict(AUTHORS, norm="layernorm", scale="layer_scale_parameter", grn="grn.weight", grn_bias="grn.bias")
TIMM = dict(AUTHORS, conv="conv_dw", fc1="mlp.fc1", fc2="mlp.fc2", grn="mlp.grn.weight", grn_bias="mlp.grn.bias")


def convnext_rules(shapes, fields, names, stem, downsample, block):
    """Rules of stem and stages. stem: names of (convolution, norm); downsample: of (norm, convolution) with "{s}"; block: a prefix with
    "{s}", and "{i}" for the layer. Fills in the fields that shapes tell."""

    def of(name, stage=0):
        return block.format(s=stage, i="{i}") + names[name]

    def shape(name, suffix=".weight"):
        return shapes.get(of(name).format(i=0) + suffix)

    stages = depths(shapes, block.replace(".", r"\.").format(s=r"(\d+)", i=r"(\d+)") + names["conv"])
    width, channels, patch, _ = shapes[f"{stem[0]}.weight"]
    fields |= dict(
        name="convnext", patch_size=patch, channels=channels, stages=stages, kernel=shape("conv")[-1],
        widths=(width, *(shapes[f"{downsample[1].format(s=i)}.weight"][0] for i in range(1, len(stages)))),
        layer_scale=1e-6 if shape("scale", "") else 0.0, response_norm=shape("grn", "") is not None,
    )  # fmt: skip
    rules = to.conv(stem[0], "encoder/patch_embed", bias=True) + to.norm(stem[1], "encoder/patch_norm")
    for stage, depth in enumerate(stages):
        ours = f"encoder/stage{stage + 1}"
        if stage:
            rules += to.norm(downsample[0].format(s=stage), f"{ours}/norm")
            rules += to.conv(downsample[1].format(s=stage), f"{ours}/downsample", bias=True)
        ours += "/blocks"
        rules += to.conv(of("conv", stage), f"{ours}/conv", depth, bias=True) + to.norm(of("norm", stage), f"{ours}/norm", depth)
        # timm's small ones have 1 x 1 convolutions for linear layers.
        dense = pointwise if len(shape("fc1")) == 4 else to.linear
        rules += dense(of("fc1", stage), f"{ours}/fc1", depth) + dense(of("fc2", stage), f"{ours}/fc2", depth)
        if fields["layer_scale"]:
            rules += to.same(of("scale", stage), f"{ours}/scale/gamma", depth)
        if fields["response_norm"]:
            for name, our in (("grn", "scale"), ("grn_bias", "bias")):  # (4 C,), or (1, 1, 1, 4 C) of the authors and HF
                rules += to.shaped(of(name, stage), f"{ours}/response_norm/{our}", (*shape("grn", "")[:-1], -1), (-1,), depth)
    return rules


def pointwise(theirs, ours, layers=0):
    """A 1 x 1 convolution (out, in, 1, 1) with a bias -> linear (in, out)."""
    rule = to.Rule((f"{theirs}.weight",), (f"{ours}/kernel",), lambda w: (w[:, :, 0, 0].T,), lambda w: (w.T[:, :, None, None],), layers)
    return [rule, *to.same(f"{theirs}.bias", f"{ours}/bias", layers)]


def hf_convnext(config, shapes):
    """ConvNextModel, ConvNextV2Model and their ForImageClassification."""
    at = to.base(shapes, "convnext.", "convnextv2.")
    fields = dict(image_size=side(config.get("image_size", 224)), activation=to.ACTIVATIONS[config.get("hidden_act", "gelu")])
    fields |= dict(last_norm_eps=config["layer_norm_eps"])
    stem = (f"{at}embeddings.patch_embeddings", f"{at}embeddings.layernorm")
    downsample = tuple(f"{at}encoder.stages.{{s}}.downsampling_layer.{i}" for i in range(2))
    rules = convnext_rules(shapes, fields, HF, stem, downsample, f"{at}encoder.stages.{{s}}.layers.{{i}}.")
    rules += to.norm(f"{at}layernorm", "encoder/norm") + classifier(shapes, fields)
    return Layout({"encoder": fields}, tuple(rules))


def timm_convnext(config, shapes):
    """timm's ConvNeXt and ConvNeXt V2 of the plain stem, with linear layers or 1 x 1 convolutions in the blocks."""
    eps = config.get("norm_eps") or 1e-6
    fields = dict(norm_eps=eps, last_norm_eps=eps, activation=to.ACTIVATIONS[config.get("act_layer") or "gelu"])
    downsample = ("stages.{s}.downsample.0", "stages.{s}.downsample.1")
    rules = convnext_rules(shapes, fields, TIMM, ("stem.0", "stem.1"), downsample, "stages.{s}.blocks.{i}.")
    if "norm_pre.weight" in shapes:
        fields |= dict(last_norm="patches")
    rules += to.norm("norm_pre" if "norm_pre.weight" in shapes else "head.norm", "encoder/norm") + head(shapes, fields, "head.fc")
    return Layout({"encoder": fields}, tuple(rules))


def convnext(config, shapes):
    """The authors' ConvNeXt and ConvNeXt V2: downsample_layers.0.0, stages.0.0.dwconv."""
    fields = {}
    downsample = ("downsample_layers.{s}.0", "downsample_layers.{s}.1")
    stem = tuple(name.format(s=0) for name in downsample)
    rules = convnext_rules(shapes, fields, AUTHORS, stem, downsample, "stages.{s}.{i}.")
    return Layout({"encoder": fields}, tuple(rules + to.norm("norm", "encoder/norm") + head(shapes, fields, "head")))


# ---------------------------------------------------------------------------------------------------------------------- heads
def mlp(at, shapes, ours):
    """nn.Sequential of linear layers, norms and activations under the prefix `at` -> fields of an MLP, rules."""
    count = depth_of(shapes, re.escape(at) + r"(\d+)\.")
    linear = [i for i in range(count) if len(shapes.get(f"{at}{i}.weight", ())) == 2]
    if not linear:
        raise KeyError(f"{at}0.weight")
    batch = [f"{at}{i + 1}.running_mean" in shapes for i in linear]  # whether BatchNorm follows
    layer = [not b and len(shapes.get(f"{at}{i + 1}.weight", ())) == 1 for i, b in zip(linear, batch, strict=True)]
    bias = [f"{at}{i}.bias" in shapes for i in linear]
    hidden = {shapes[f"{at}{i}.weight"][0] for i in linear[:-1]}
    if any(len(set(kinds[:-1])) > 1 for kinds in (batch, layer, bias)) or len(hidden) > 1 or layer[-1]:
        raise UserError(f"the layers {at}* are no MLP with hidden layers of one kind and width")
    norm = "batch" if any(batch[:-1]) else "layer" if any(layer[:-1]) else "none"
    last = f"{at}{linear[-1] + 1}"
    affine = "none" if f"{last}.weight" not in shapes else "all" if f"{last}.bias" in shapes else "scale"
    fields = dict(
        name="mlp", hidden=min(hidden, default=0), out=shapes[f"{at}{linear[-1]}.weight"][0], layers=len(linear), norm=norm,
        last_norm=batch[-1], last_affine=affine if batch[-1] else "scale", bias=(bias[0], bias[-1]),
        example=to.inputs((2, shapes[f"{at}{linear[0]}.weight"][1])),
    )  # fmt: skip
    rules = []
    for n, i in enumerate(linear, 1):
        rules += to.linear(f"{at}{i}", f"{ours}/fc{n}", bias=bias[n - 1])
        their = f"{at}{i + 1}"
        if batch[n - 1] and n == len(linear) and affine != "all":
            rules += to.same(f"{their}.weight", f"{ours}/bn{n}/scale") if affine == "scale" else []
            rules += [rule for rule in to.batch_norm(their, f"{ours}/bn{n}") if rule.ours[0].startswith("stats/")]
        elif batch[n - 1]:
            rules += to.batch_norm(their, f"{ours}/bn{n}")
        elif layer[n - 1]:
            rules += to.norm(their, f"{ours}/norm{n}")
    return fields, rules


def projection_head(config, shapes):
    """Heads that are nn.Sequential: lightly's and the papers' MLPs, one or a projector and a predictor in a row; DINO's head.

    No array tells an activation. It is ReLU, but GELU in front of prototypes, and where the configuration says so."""
    gelu = "gelu" in str(config).lower()
    if any(name.startswith("last_layer.") for name in shapes):
        return dino_head(shapes)
    groups = sorted({parts[0] for name in shapes if (parts := re.split(r"(?:^|(?<=\.))\d+\.(?=\w+$)", name))[1:]})
    parts, rules = {}, []
    for at, part in zip(groups, ("projector", "predictor"), strict=False):
        parts[part], more = mlp(at, shapes, part)
        parts[part] |= dict(activation="gelu" if gelu else "relu")
        rules += more
    return Layout(parts, tuple(rules))


def dino_head(shapes):
    """DINOHead of the authors (mlp.) and of lightly (layers.), the weight normalisation spelt in the old way or the new."""
    fields, rules = mlp(to.base(shapes, "layers.", "mlp."), shapes, "head")
    gain, kernel = ("last_layer.weight_g", "last_layer.weight_v")
    if gain not in shapes:
        gain, kernel = (f"last_layer.parametrizations.weight.original{i}" for i in range(2))
    keep = {key: fields[key] for key in ("hidden", "layers", "norm", "bias", "example")}
    fields = dict(keep, name="dino_head", bottleneck=fields["out"], out=shapes[kernel][0], gain=True)
    rules += to.shaped(gain, "head/last_layer/gain", shapes[gain], (-1,))
    rules += [to.Rule((kernel,), ("head/last_layer/kernel",), lambda w: (w.T,), lambda w: (w.T,))]
    return Layout({"head": fields}, tuple(rules))


# ------------------------------------------------------------------------------------------------------------------------ out
def to_hf_resnet(parts, tree):
    """Our ResNet -> ResNetModel, or ResNetForImageClassification with a head."""
    fields, ours = of_resnet(parts, tree), tree["encoder"]
    at, name = ("resnet.", "ResNetForImageClassification") if fields["out"] else ("", "ResNetModel")
    config = dict(
        model_type="resnet", architectures=[name], num_channels=ours["conv1"]["kernel"].shape[2], embedding_size=fields["stem_width"],
        hidden_sizes=list(fields["widths"]), depths=list(fields["stages"]), hidden_act="relu",
        layer_type="bottleneck" if fields["bottleneck"] else "basic", downsample_in_first_stage=fields["first_stride"] == 2,
        downsample_in_bottleneck=fields["stride_first"],
        **(dict(id2label={str(i): str(i) for i in range(fields["out"])}) if fields["out"] else {}),
    )  # fmt: skip
    shapes = {
        f"{at}encoder.stages.{s}.layers.{b}.shortcut.convolution.weight": ()
        for s, b in blocks_of(fields) if "downsample_conv" in ours[f"layer{s + 1}_{b}"]
    } | ({"resnet.": (), "classifier.1.weight": (fields["out"], fields["widths"][-1])} if fields["out"] else {})  # fmt: skip
    return "hf:resnet", config, {"encoder": fields}, tree, hf_resnet(config, shapes).rules


def to_timm_resnet(parts, tree):
    """Our ResNet -> timm's, which torchvision's files look like."""
    fields, ours = of_resnet(parts, tree), tree["encoder"]

    def conv(kernel):
        return (kernel.shape[3], kernel.shape[2], *kernel.shape[:2])

    shapes = {"conv1.weight": conv(ours["conv1"]["kernel"])}
    for s, b in blocks_of(fields):
        for name, leaf in ours[f"layer{s + 1}_{b}"].items():
            if "kernel" in leaf:
                shapes[f"layer{s + 1}.{b}.{name.replace('downsample_conv', 'downsample.0')}.weight"] = conv(leaf["kernel"])
    if fields["out"]:
        shapes |= {"fc.weight": ours["out"]["kernel"].shape[::-1]} | ({"fc.bias": ()} if fields["out_bias"] else {})
    layout = resnet({}, shapes)
    named = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 50 if fields["bottleneck"] else 34, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
    config = dict(architecture=f"resnet{named.get(tuple(fields['stages']), 50)}", num_classes=fields["out"])
    if tuple(fields["stages"]) not in named:
        config |= dict(model_args=dict(layers=list(fields["stages"])))
    return "timm:resnet", config, {"encoder": fields}, tree, layout.rules


def of_resnet(parts, tree):
    """The fields of our ResNet with the channels of every stage, which a config may leave to one `width`, off the arrays."""
    fields = parts["encoder"]
    if fields["name"] != "resnet":
        raise to.Inexpressible(f"the encoder is a {fields['name']}")
    last, ours = "conv3" if fields["bottleneck"] else "conv2", tree["encoder"]
    widths = tuple(int(ours[f"layer{stage + 1}_0"][last]["kernel"].shape[-1]) for stage in range(len(fields["stages"])))
    return fields | dict(width=64, widths=widths, stem_width=int(ours["conv1"]["kernel"].shape[-1]), stages=tuple(fields["stages"]))


def blocks_of(fields):
    return [(stage, block) for stage, count in enumerate(fields["stages"]) for block in range(count)]


EXPORTS = {"hf": (to_hf_resnet,), "timm": (to_timm_resnet,)}
NAMES = {
    "hf:resnet": hf_resnet, "timm:resnet": resnet, "torch:resnet": resnet, "hf:convnext": hf_convnext, "hf:convnextv2": hf_convnext,
    "timm:convnext": timm_convnext, "torch:convnext": convnext, "torch:projection_head": projection_head,
}  # fmt: skip
