"""timm's state dicts, those of the papers' own code that look like them (DINO, DINOv2, MAE, DeiT, I-JEPA), and open_clip's.

They come without a config.json: sizes are read off the shapes. What no shape tells, the number of heads, is the config's "num_heads" or
64 channels a head.
"""

import re

import numpy as np

from ssljax import layouts as to
from ssljax.layouts import Layout, blocks
from ssljax.models import positions


def depth_of(shapes, pattern):
    """How many layers names like "blocks.7." count."""
    return 1 + max((int(m[1]) for name in shapes if (m := re.match(pattern, name))), default=-1)


def vit_fields(config, shapes, at=""):
    """The fields of a ViT in timm's layout, from shapes."""
    width, channels, patch, _ = shapes[f"{at}patch_embed.proj.weight"]
    tokens = shapes[f"{at}pos_embed"][1]
    class_token, registers = f"{at}cls_token" in shapes, shapes.get(f"{at}reg_token", shapes.get(f"{at}register_tokens", (0, 0)))[1]
    prefix = int(class_token) + int(f"{at}dist_token" in shapes)
    counted = prefix + (registers if f"{at}reg_token" in shapes else 0)
    grid = round((tokens - prefix) ** 0.5)
    positioned = grid * grid == tokens - prefix and prefix > 0
    if not positioned and round(tokens**0.5) ** 2 == tokens:  # timm's no_embed_class: positions of patches only
        grid = round(tokens**0.5)
    del counted
    fields = dict(
        name="vit", image_size=grid * patch, patch_size=patch, width=width,
        depth=depth_of(shapes, re.escape(at) + r"blocks\.(\d+)\."),
        heads=config.get("num_heads") or max(width // 64, 1), mlp_dim=shapes.get(f"{at}blocks.0.mlp.fc2.weight", (0, 0))[1],
        channels=channels,
        class_token=class_token, class_position=positioned, distill_token=f"{at}dist_token" in shapes, registers=registers,
        first_norm=f"{at}norm_pre.weight" in shapes, patch_bias=f"{at}patch_embed.proj.bias" in shapes,
        qkv_bias="all" if f"{at}blocks.0.attn.qkv.bias" in shapes else "none", qk_norm=f"{at}blocks.0.attn.q_norm.weight" in shapes,
        layer_scale=1.0 if f"{at}blocks.0.ls1.gamma" in shapes else 0.0, mask_token=f"{at}mask_token" in shapes, resize="bicubic_antialias",
        activation=to.ACTIVATIONS[config.get("act_layer") or "gelu"], norm_eps=config.get("norm_eps", 1e-6),
    )  # fmt: skip
    fields["pool"] = "map" if f"{at}attn_pool.latent" in shapes else "cls" if class_token else "gap"
    fields["last_norm"] = "pooled" if f"{at}fc_norm.weight" in shapes else "tokens"
    if fields["last_norm"] == "pooled" or config.get("global_pool") == "avg":
        fields["pool"] = "gap"
    if f"{at}blocks.0.mlp.w12.weight" in shapes:  # DINOv2's giant: SwiGLU, gate and value in one layer
        fields |= dict(gated=True, activation="silu", mlp_dim=shapes[f"{at}blocks.0.mlp.w3.weight"][1])
    return fields


def vit_rules(at, shapes, fields, part="encoder"):
    prefix = [n for n, there in (("cls_position", fields["class_token"]), ("dist_position", fields["distill_token"])) if there]
    names = dict(blocks.TIMM)
    if fields["layer_scale"]:
        names |= dict(scale1="ls1.gamma", scale2="ls2.gamma")
    if fields["qk_norm"]:
        names |= dict(q_norm="attn.q_norm", k_norm="attn.k_norm")
    if fields.get("gated"):
        names = {k: v for k, v in names.items() if k != "fc1"} | dict(gate_fused="mlp.w12", fc2="mlp.w3")
    rules = [
        *to.conv(f"{at}patch_embed.proj", f"{part}/patch_embed", bias=fields["patch_bias"]),
        *to.position_table(f"{at}pos_embed", part, prefix if fields["class_position"] else ()),
        *blocks.rules(f"{at}blocks.{{i}}.", f"{part}/transformer", fields["depth"], fields["heads"], names, qkv_bias=fields["qkv_bias"]),
    ]
    tokens = (("cls_token", "class_token"), ("dist_token", "distill_token"), ("mask_token", "mask_token"))
    for their, ours in tokens:
        if fields[ours] and shapes[f"{at}{their}"] == (1, fields["width"]):  # DINOv2's mask token
            rules += to.shaped(f"{at}{their}", f"{part}/{their}", (1, fields["width"]), (1, 1, fields["width"]))
        elif fields[ours]:
            rules += to.same(f"{at}{their}", f"{part}/{their}")
    if fields["registers"]:
        name = "reg_token" if f"{at}reg_token" in shapes else "register_tokens"
        rules += to.same(f"{at}{name}", f"{part}/registers")
    if fields["first_norm"]:
        rules += to.norm(f"{at}norm_pre", f"{part}/first_norm")
    rules += (
        to.norm(f"{at}fc_norm", f"{part}/pool_norm")
        if fields["last_norm"] == "pooled"
        else to.norm(f"{at}norm", f"{part}/transformer/norm")
    )
    return rules


def timm_vit(config, shapes):
    """timm's VisionTransformer; the papers' DINO, DINOv2, MAE encoder, DeiT, MoCo v3 files have its names."""
    fields = vit_fields(config, shapes)
    rules = vit_rules("", shapes, fields) + pool_rules(fields)
    if "head.weight" in shapes:
        fields |= dict(out=shapes["head.weight"][0], out_bias="head.bias" in shapes)
        rules += to.linear("head", "encoder/out", bias=fields["out_bias"])
    return Layout({"encoder": fields}, tuple(rules), normalise=to.HALF)


def pool_rules(fields):
    """timm's AttentionPoolLatent, where the pooling is by attention."""
    heads, rules = fields["heads"], []
    if fields["pool"] == "map":
        rules += [
            *to.same("attn_pool.latent", "encoder/pool/probe"),
            *to.heads_in(["attn_pool.q"], "encoder/pool/attn/query", heads),
            *to.heads_fused("attn_pool.kv.weight", "attn_pool.kv.bias", "", heads, count=2,
                            split=(("encoder/pool/attn/key", 0), ("encoder/pool/attn/value", 1))),
            *to.heads_out("attn_pool.proj", "encoder/pool/attn/out", heads),
            *to.norm("attn_pool.norm", "encoder/pool/norm"),
            *to.linear("attn_pool.mlp.fc1", "encoder/pool/mlp/fc1"),
            *to.linear("attn_pool.mlp.fc2", "encoder/pool/mlp/fc2"),
        ]  # fmt: skip
    return rules


def to_timm_vit(parts, tree):
    """Our ViT -> timm's, its fixed positions written as a table."""
    fields, tree = with_table(parts["encoder"], tree, class_position=False)
    if fields["registers"] and fields["class_position"]:
        raise to.Inexpressible("with registers it has positions of patches alone")
    fields = fields | dict(mask_token=False)
    width = fields["width"]
    rules = vit_rules("", {name: (1, 1, width) for name in ("cls_token", "dist_token", "reg_token")}, fields) + pool_rules(fields)
    rules += to.linear("head", "encoder/out", bias=fields["out_bias"]) if fields["out"] else []
    config = dict(
        model_args=dict(img_size=fields["image_size"], patch_size=fields["patch_size"], embed_dim=width, depth=fields["depth"],
                        num_heads=fields["heads"], mlp_ratio=fields["mlp_dim"] / width, num_classes=fields["out"],
                        class_token=fields["class_token"], reg_tokens=fields["registers"], no_embed_class=not fields["class_position"],
                        init_values=fields["layer_scale"] or None),
        num_heads=fields["heads"], norm_eps=fields["norm_eps"], act_layer=fields["activation"],
        global_pool={"cls": "token", "gap": "avg", "map": "map"}.get(fields["pool"]),
    )  # fmt: skip
    return "timm:vit", config, {"encoder": fields}, tree, rules


def with_table(fields, tree, class_position=True):
    """A ViT as the public ones are: fixed positions as a table; with class_position one of the class token, zero where there was none."""
    if fields["name"] != "vit":
        raise to.Inexpressible(f"the encoder is a {fields['name']}")
    encoder, width = dict(tree["encoder"]), fields["width"]
    if fields["position"].startswith("sincos_") and fields["position"] != "sincos_1d":
        grid = (fields["image_size"] // fields["patch_size"],) * 2
        encoder["pos_embed"] = positions.sincos_2d(*grid, width, layout=fields["position"].removeprefix("sincos_"))[None]
        fields = fields | dict(position="learned")
    if class_position and fields["class_token"] and not fields["class_position"] and fields["position"] == "learned":
        encoder["cls_position"] = np.zeros((1, 1, width), np.float32)
        fields = fields | dict(class_position=True)
    return fields, {**tree, "encoder": encoder}


def ijepa(config, shapes):
    """I-JEPA's own checkpoints: encoder and predictor, both without a class token."""
    fields = vit_fields(config, shapes, "encoder.")
    width = shapes["predictor.predictor_embed.weight"][0]
    depth = depth_of(shapes, r"predictor\.predictor_blocks\.(\d+)\.")
    grid = fields["image_size"] // fields["patch_size"]
    fields |= dict(resize="bicubic")
    predictor = dict(
        name="predictor", width=width, depth=depth, heads=config.get("pred_heads") or fields["heads"], position="learned",
        out=fields["width"],
        mlp_dim=shapes["predictor.predictor_blocks.0.mlp.fc1.weight"][0], grid=(grid, grid), norm_eps=fields["norm_eps"],
        example=to.inputs((1, 1, fields["width"]), (1, 1), (1, 1), ids=(1, 2)),
    )  # fmt: skip
    at = "predictor.predictor_"
    rules = [
        *vit_rules("encoder.", shapes, fields),
        *to.linear(f"{at}embed", "predictor/embed"),
        *to.same("predictor.mask_token", "predictor/mask_token"),
        *to.same(f"{at}pos_embed", "predictor/pos_embed"),
        *blocks.rules(f"{at}blocks.{{i}}.", "predictor/transformer", depth, predictor["heads"], blocks.TIMM),
        *to.norm(f"{at}norm", "predictor/transformer/norm"),
        *to.linear(f"{at}proj", "predictor/project"),
    ]
    return Layout({"encoder": fields, "predictor": predictor}, tuple(rules))


NAMES = {"timm:vit": timm_vit, "ijepa:ijepa": ijepa}
EXPORTS = {"timm": (to_timm_vit,)}
