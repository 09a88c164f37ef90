"""Swin Transformers: transformers' SwinModel and what is built on it, timm's, and the authors' own files."""

import re

from ssljax import layouts as to
from ssljax.layouts import Layout, blocks
from ssljax.layouts.convnets import depths, head
from ssljax.layouts.hf import bias_of, classifier, shuffled, side

HF = dict(blocks.HF_VIT, **{name: f"attention.self.{their}" for name, their in (("q", "query"), ("k", "key"), ("v", "value"))})


def window(rows):
    """The side of a window whose table of relative biases has so many rows: (2 w - 1)^2."""
    return (round(rows**0.5) + 1) // 2


def rules_of(shapes, fields, names, table, stage_at, patches, norm, merge_at=0):
    """Rules of everything but the head; fills in the fields that shapes tell. names: of a block's layers; table: of its relative biases;
    stage_at: prefix of a stage with "{s}"; patches: (convolution, norm); merge_at: 1 where a stage's merging is stored with the stage
    in front of it, else 0."""
    at = stage_at + "blocks.{i}."
    stages = depths(shapes, re.escape(at).replace(r"\{s\}", r"(\d+)").replace(r"\{i\}", r"(\d+)") + re.escape(table) + "$")
    tables = [shapes[at.format(s=s, i=0) + table] for s in range(len(stages))]
    width, channels, patch, _ = shapes[f"{patches[0]}.weight"]
    fc1 = shapes[f"{at.format(s=0, i=0)}{names['fc1']}.weight"]
    fields |= dict(
        name="swin", patch_size=patch, channels=channels, width=width, stages=stages, heads=tuple(heads for _, heads in tables),
        windows=tuple(window(rows) for rows, _ in tables), mlp_ratio=fields.get("mlp_ratio", fc1[0] / fc1[1]),
    )  # fmt: skip
    rules = to.conv(patches[0], "encoder/patch_embed", bias=True) + to.norm(patches[1], "encoder/patch_norm")
    for s, (depth, (_, heads)) in enumerate(zip(stages, tables, strict=True)):
        theirs, ours = at.format(s=s, i="{i}"), f"encoder/stage{s + 1}"
        rules += blocks.rules(theirs, ours, depth, heads, names, qkv_bias=fields["qkv_bias"])
        rules += to.same(theirs + table, f"{ours}/blocks/attn/relative", depth)
        if s:
            merge = stage_at.format(s=s - merge_at) + "downsample."
            rules += to.norm(f"{merge}norm", f"{ours}/norm") + to.linear(f"{merge}reduction", f"{ours}/downsample", bias=False)
    return rules + to.norm(norm, "encoder/norm")


def hf_swin(config, shapes):
    """SwinModel, SwinForImageClassification and SwinForMaskedImageModeling (SimMIM)."""
    at = to.base(shapes, "swin.")
    embeddings = f"{at}embeddings."
    fields = dict(
        image_size=side(config["image_size"]), activation=to.ACTIVATIONS[config.get("hidden_act", "gelu")], qkv_bias=bias_of(config),
        norm_eps=config["layer_norm_eps"], mlp_ratio=config["mlp_ratio"], mask_token=f"{embeddings}mask_token" in shapes,
        position="learned" if f"{embeddings}position_embeddings" in shapes else "none",
    )  # fmt: skip
    patches = (f"{embeddings}patch_embeddings.projection", f"{embeddings}norm")
    table = "attention.self.relative_position_bias_table"
    rules = rules_of(shapes, fields, HF, table, f"{at}encoder.layers.{{s}}.", patches, f"{at}layernorm", merge_at=1)
    rules += to.same(f"{embeddings}mask_token", "encoder/mask_token") if fields["mask_token"] else []
    rules += to.same(f"{embeddings}position_embeddings", "encoder/pos_embed") if fields["position"] == "learned" else []
    parts = {"encoder": fields}
    if "decoder.0.weight" in shapes:
        size = config["encoder_stride"]
        parts["decoder"] = dict(name="pixel_shuffle", patch_size=size, example=to.inputs((1, 1, shapes["decoder.0.weight"][1])))
        rules += shuffled("decoder.0", "decoder/pixels", size, fields["channels"])
    return Layout(parts, tuple(rules + classifier(shapes, fields)))


def swin(config, shapes):
    """timm's SwinTransformer (head.fc, merging at the start of a stage) and the authors' (head, merging at the end of the one before)."""
    authors = "layers.0.downsample.reduction.weight" in shapes
    attention = "layers.0.blocks.0.attn.qkv"
    fields = dict(
        qkv_bias="all" if f"{attention}.bias" in shapes else "none", ragged="swin" if authors else "timm",
        position="learned" if "absolute_pos_embed" in shapes else "none",
    )  # fmt: skip
    patches = ("patch_embed.proj", "patch_embed.norm")
    table = "attn.relative_position_bias_table"
    rules = rules_of(shapes, fields, blocks.TIMM, table, "layers.{s}.", patches, "norm", merge_at=int(authors))
    fields |= dict(image_size=side(config.get("img_size") or 32 * fields["windows"][0]))
    if fields["position"] == "learned":
        fields |= dict(image_size=round(shapes["absolute_pos_embed"][1] ** 0.5) * fields["patch_size"])
        rules += to.same("absolute_pos_embed", "encoder/pos_embed")
    rules += head(shapes, fields, "head.fc" if "head.fc.weight" in shapes else "head")
    return Layout({"encoder": fields}, tuple(rules), buffers=(*Layout.buffers, r"attn_mask$"))


NAMES = {"hf:swin": hf_swin, "timm:swin": swin, "torch:swin": swin}
