"""Towers of images and texts: CLIP, SigLIP, BLIP and FLAVA of transformers, CLIP and CoCa of open_clip (OpenAI's files look the same)."""

import re

from ssljax import layouts as to
from ssljax.layouts import Layout, blocks
from ssljax.layouts.hf import image, side, stack, to_stack, vit_rules
from ssljax.layouts.torch import depth_of, with_table


def token_table(theirs, ours, shape):
    """Positions of text (L, D) -> "pos_embed" (1, L, D)."""
    return to.shaped(theirs, f"{ours}/pos_embed", shape, (1, *shape))


def hf_vision(config, shapes, at, fields, names=blocks.HF_CLIP):
    """Rules of the vision tower that CLIP and SigLIP of transformers share."""
    embeddings = f"{at}embeddings."
    rules = to.conv(f"{embeddings}patch_embedding", "encoder/patch_embed", bias=fields["patch_bias"])
    if fields["class_token"]:
        their = shapes[f"{embeddings}class_embedding"]
        rules += to.shaped(f"{embeddings}class_embedding", "encoder/cls_token", their, (1, 1, their[-1]))
    prefix = ("cls_position",) if fields["class_token"] else ()
    rules += to.position_table(f"{embeddings}position_embedding.weight", "encoder", prefix, flat=True)
    rules += blocks.rules(f"{at}encoder.layers.{{i}}.", "encoder/transformer", fields["depth"], fields["heads"], names)
    norm = "encoder/pool_norm" if fields.get("last_norm") == "pooled" else "encoder/transformer/norm"
    return rules + to.norm(f"{at}post_layernorm", norm)


def hf_text(shapes, at, fields):
    """Rules of the text tower that CLIP and SigLIP of transformers share."""
    return [
        *to.same(f"{at}embeddings.token_embedding.weight", "text/token_embed/embedding"),
        *token_table(f"{at}embeddings.position_embedding.weight", "text", shapes[f"{at}embeddings.position_embedding.weight"]),
        *blocks.rules(f"{at}encoder.layers.{{i}}.", "text/transformer", fields["depth"], fields["heads"], blocks.HF_CLIP),
        *to.norm(f"{at}final_layer_norm", "text/transformer/norm"),
    ]


def text_fields(config, **changes):
    return dict(name="text", vocab_size=config["vocab_size"], length=config["max_position_embeddings"]) | stack(config) | changes


def hf_clip(config, shapes):
    """CLIPModel, and CLIPVisionModel or CLIPTextModel alone (with or without projection)."""
    parts, rules = {}, []
    at = to.base(shapes, "vision_model.")
    if f"{at}embeddings.patch_embedding.weight" in shapes:
        own = config.get("vision_config", config)
        fields = image(own, patch_bias=False, class_token=True, first_norm=True, last_norm="pooled")
        if "visual_projection.weight" in shapes:
            fields |= dict(out=shapes["visual_projection.weight"][0])
            rules += to.linear("visual_projection", "encoder/out", bias=False)
        rules += hf_vision(own, shapes, at, fields) + to.norm(f"{at}pre_layrnorm", "encoder/first_norm")
        parts["encoder"] = fields
    at = to.base(shapes, "text_model.")
    if f"{at}embeddings.token_embedding.weight" in shapes:
        own = config.get("text_config", config)
        eos = own.get("eos_token_id", 2)
        # transformers: files from before the end token was stated say 2, and mean the largest id
        fields = text_fields(own, causal=True, pool="eot", eos=-1 if eos in (2, None) else eos)
        if "text_projection.weight" in shapes:
            fields |= dict(out=shapes["text_projection.weight"][0])
            rules += to.linear("text_projection", "text/out", bias=False)
        rules += hf_text(shapes, at, fields)
        parts["text"] = fields
    return scaled(parts, rules, shapes, "clip", to.CLIP)


def hf_siglip(config, shapes):
    """SiglipModel, and Siglip2Model, whose patches are flattened in front of a linear layer."""
    parts, rules, own = {}, [], config.get("vision_config", config)
    at = to.base(shapes, "vision_model.")
    if f"{at}embeddings.patch_embedding.weight" in shapes:
        table = shapes[f"{at}embeddings.position_embedding.weight"]
        grid = round(table[0] ** 0.5)
        own = dict(own, image_size=grid * side(own["patch_size"]))
        fields = image(own, patch_bias=True, class_token=False, class_position=False, pool="map" if f"{at}head.probe" in shapes else "gap")
        rules += hf_vision(own, shapes, at, fields)
        flat = shapes[f"{at}embeddings.patch_embedding.weight"]
        if len(flat) == 2:  # SigLIP 2: (D, row * column * colour)
            size, name = fields["patch_size"], f"{at}embeddings.patch_embedding.weight"
            rules = [rule for rule in rules if name not in rule.theirs]
            kernel = (size, size, flat[1] // size**2, flat[0])
            rules.append(
                to.Rule((name,), ("encoder/patch_embed/kernel",), lambda w: (w.T.reshape(kernel),), lambda w: (w.reshape(-1, flat[0]).T,))
            )
            fields |= dict(resize="bilinear_antialias")
        if fields["pool"] == "map":
            rules += map_head(f"{at}head.", fields["heads"])
        parts["encoder"] = fields
    if any(name.startswith("text_model.") for name in shapes):
        own_text = config.get("text_config", config)
        fields = text_fields(own_text, pool="last", out=shapes["text_model.head.weight"][0], out_bias=True)
        rules += hf_text(shapes, "text_model.", fields) + to.linear("text_model.head", "text/out")
        parts["text"] = fields
    return scaled(parts, rules, shapes, "siglip", to.HALF)


def map_head(at, heads):
    """SigLIP's attention pooling, over torch's nn.MultiheadAttention."""
    split = tuple((f"encoder/pool/attn/{name}", i) for i, name in enumerate(("query", "key", "value")))
    return [
        *to.same(f"{at}probe", "encoder/pool/probe"),
        *to.heads_fused(f"{at}attention.in_proj_weight", f"{at}attention.in_proj_bias", "", heads, split=split),
        *to.heads_out(f"{at}attention.out_proj", "encoder/pool/attn/out", heads),
        *to.norm(f"{at}layernorm", "encoder/pool/norm"),
        *to.linear(f"{at}mlp.fc1", "encoder/pool/mlp/fc1"),
        *to.linear(f"{at}mlp.fc2", "encoder/pool/mlp/fc2"),
    ]


def scaled(parts, rules, shapes, method, normalise, **more):
    """The Layout of towers with the logit scale and bias that the file has; both are () here, the scale as its logarithm."""
    for name in ("logit_scale", "logit_bias"):
        if name in shapes:
            parts[name] = {"shape": ()}
            rules += to.shaped(name, name, shapes[name], ())
    both = "encoder" in parts and "text" in parts
    return Layout(parts, tuple(rules), method={"name": method if both else "supervised"}, normalise=dict(normalise), **more)


def hf_blip(config, shapes):
    """BlipForImageTextRetrieval: towers with projections, and the text tower's cross-attention with a head of match or not."""
    vision, text = config["vision_config"], config["text_config"]
    fields = image(vision, patch_bias=True, class_token=True, out=shapes["vision_proj.weight"][0], out_bias=True)
    names = dict(blocks.HF_CLIP, qkv="self_attn.qkv", proj="self_attn.projection")
    at = "vision_model."
    rules = [
        *to.conv(f"{at}embeddings.patch_embedding", "encoder/patch_embed", bias=True),
        *to.same(f"{at}embeddings.class_embedding", "encoder/cls_token"),
        *to.position_table(f"{at}embeddings.position_embedding", "encoder"),
        *blocks.rules(f"{at}encoder.layers.{{i}}.", "encoder/transformer", fields["depth"], fields["heads"], names),
        *to.norm(f"{at}post_layernorm", "encoder/transformer/norm"),
        *to.linear("vision_proj", "encoder/out"),
    ]
    tower = text_fields(
        text, norm="post", first_norm=True, last_norm="none", pool="first", cross=True,
        memory_width=text.get("encoder_hidden_size", fields["width"]),
        out=shapes["text_proj.weight"][0], out_bias=True,
    )  # fmt: skip
    at, layer, other = "text_encoder.embeddings.", "text_encoder.encoder.layer.{i}.", "crossattention."
    depth, heads = tower["depth"], tower["heads"]
    rules += [
        *to.same(f"{at}word_embeddings.weight", "text/token_embed/embedding"),
        *token_table(f"{at}position_embeddings.weight", "text", shapes[f"{at}position_embeddings.weight"]),
        *to.norm(f"{at}LayerNorm", "text/first_norm"),
        *blocks.rules(layer, "text/transformer", depth, heads, blocks.HF_BERT),
        *blocks.cross(layer, "text/transformer", depth, heads, f"{other}self.query", f"{other}self.key", f"{other}self.value",
                      f"{other}output.dense", f"{other}output.LayerNorm"),
        *to.linear("text_proj", "text/out"),
        *to.linear("itm_head", "match/linear"),
    ]  # fmt: skip
    parts = {"encoder": fields, "text": tower, "match": dict(name="linear_head", out=2, example=to.inputs((1, tower["width"])))}
    return scaled(parts, rules, shapes, "clip", to.CLIP)


def hf_flava(config, shapes):
    """FlavaModel: both towers, their projections, and the multimodal encoder."""
    own, text, both = config["image_config"], config["text_config"], config["multimodal_config"]
    fields = image(own, mask_token="image_model.embeddings.mask_token" in shapes, pooler="image_model.pooler.dense.weight" in shapes)
    fields |= dict(out=shapes["image_projection.weight"][0], out_bias=True)
    tower = text_fields(
        text, types=text["type_vocab_size"], first_norm=True, pool="first", pooler="text_model.pooler.dense.weight" in shapes
    )
    tower |= dict(out=shapes["text_projection.weight"][0], out_bias=True)
    fusion = dict(name="fusion", pooler="multimodal_model.pooler.dense.weight" in shapes) | stack(both)
    fusion |= dict(example=to.inputs((1, 1, fields["width"]), (1, 1, tower["width"])))
    at = "text_model.embeddings."
    rules = [
        *vit_rules("image_model.", shapes, fields),
        *to.linear("image_projection", "encoder/out"),
        *to.same(f"{at}word_embeddings.weight", "text/token_embed/embedding"),
        *token_table(f"{at}position_embeddings.weight", "text", shapes[f"{at}position_embeddings.weight"]),
        *to.same(f"{at}token_type_embeddings.weight", "text/types"),
        *to.norm(f"{at}LayerNorm", "text/first_norm"),
        *blocks.rules("text_model.encoder.layer.{i}.", "text/transformer", tower["depth"], tower["heads"], blocks.HF_VIT),
        *to.norm("text_model.layernorm", "text/transformer/norm"),
        *(to.linear("text_model.pooler.dense", "text/pooler") if tower["pooler"] else []),
        *to.linear("text_projection", "text/out"),
        *to.same("multimodal_model.cls_token", "fusion/cls_token"),
        *to.linear("image_to_mm_projection", "fusion/image"),
        *to.linear("text_to_mm_projection", "fusion/text"),
        *blocks.rules("multimodal_model.encoder.layer.{i}.", "fusion/transformer", fusion["depth"], fusion["heads"], blocks.HF_VIT),
        *to.norm("multimodal_model.layernorm", "fusion/transformer/norm"),
        *(to.linear("multimodal_model.pooler.dense", "fusion/pooler") if fusion["pooler"] else []),
    ]
    return scaled({"encoder": fields, "text": tower, "fusion": fusion}, rules, shapes, "clip", to.CLIP)


# ---------------------------------------------------------------------------------------------------------------- open_clip
def open_clip_vision(config, shapes, activation):
    """Fields and rules of open_clip's VisionTransformer; what no shape tells comes from the config's vision_cfg."""
    own = config.get("vision_cfg", {})
    width, _, patch, _ = shapes["visual.conv1.weight"]
    tokens = shapes["visual.positional_embedding"][0]
    queries = shapes.get("visual.attn_pool.query")
    fields = dict(
        name="vit", image_size=round((tokens - 1) ** 0.5) * patch, patch_size=patch, width=width, class_position=True, patch_bias=False,
        depth=depth_of(shapes, r"visual\.transformer\.resblocks\.(\d+)\."), heads=width // own.get("head_width", 64),
        mlp_dim=shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0], activation=activation, norm_eps=1e-5,
        first_norm="visual.ln_pre.weight" in shapes, last_norm="pooled", out=shapes["visual.proj"][1],
        layer_scale=1.0 if "visual.transformer.resblocks.0.ls_1.gamma" in shapes else 0.0,
    )  # fmt: skip
    rules = [
        *to.conv("visual.conv1", "encoder/patch_embed"),
        *to.shaped("visual.class_embedding", "encoder/cls_token", (width,), (1, 1, width)),
        *to.position_table("visual.positional_embedding", "encoder", flat=True),
        *(to.norm("visual.ln_pre", "encoder/first_norm") if fields["first_norm"] else []),
        *blocks.rules("visual.transformer.resblocks.{i}.", "encoder/transformer", fields["depth"], fields["heads"], resblocks(fields)),
        *to.norm("visual.ln_post", "encoder/pool_norm"),
        *to.same("visual.proj", "encoder/out/kernel"),
    ]
    if queries:
        heads = own.get("attn_pooler_heads", 8)
        fields |= dict(pool="queries", queries=queries[0], query_width=queries[1], query_heads=heads)
        at = "visual.attn_pool."
        rules += [
            *to.same(f"{at}query", "encoder/pool/query"),
            *to.norm(f"{at}ln_q", "encoder/pool/norm_query"),
            *to.norm(f"{at}ln_k", "encoder/pool/norm_memory"),
            *attention_to_memory(f"{at}attn.", "encoder/pool/attn", heads, fused=f"{at}attn.in_proj_weight" in shapes),
        ]
    return fields, rules


def resblocks(fields):
    scales = dict(scale1="ls_1.gamma", scale2="ls_2.gamma") if fields.get("layer_scale") else {}
    return blocks.OPEN_CLIP | scales


def attention_to_memory(theirs, ours, heads, layers=0, fused=True):
    """torch's nn.MultiheadAttention across two streams -> "q", "kv", "proj"; fused where both are of one width."""

    def split(b):
        b = b.reshape(3, heads, -1)
        return b[0], b[1:]

    def join(q, kv):
        return (to.np.concatenate([q.reshape(-1), kv.reshape(-1)]),)

    bias = to.Rule((f"{theirs}in_proj_bias",), (f"{ours}/q/bias", f"{ours}/kv/bias"), split, join, layers)
    if fused:
        parts = ((f"{ours}/q", 0), (f"{ours}/kv", slice(1, 3)))
        weights = to.heads_fused(f"{theirs}in_proj_weight", "", "", heads, layers, split=parts)
    else:
        weights = [
            *plain(to.heads_in([f"{theirs}q_proj_weight"], f"{ours}/q", heads, layers, [""])),
            *plain(to.heads_in([f"{theirs}k_proj_weight", f"{theirs}v_proj_weight"], f"{ours}/kv", heads, layers, ["", ""])),
        ]
    return [*weights, bias, *to.heads_out(f"{theirs}out_proj", f"{ours}/proj", heads, layers)]


def plain(rules):
    """Rules of arrays whose names do not end in ".weight"."""
    return [to.dataclasses.replace(rule, theirs=tuple(name.removesuffix(".weight") for name in rule.theirs)) for rule in rules]


def open_clip_text(config, shapes, activation, at=""):
    """Fields and rules of open_clip's text transformer."""
    own = config.get("text_cfg", {})
    vocabulary, width = shapes[f"{at}token_embedding.weight"]
    token = f"{at}cls_emb" in shapes
    length = shapes[f"{at}positional_embedding"][0]
    fields = dict(
        name="text", vocab_size=vocabulary, length=length - token, width=width, heads=own.get("heads") or width // 64, norm_eps=1e-5,
        depth=depth_of(shapes, re.escape(at) + r"transformer\.resblocks\.(\d+)\."), causal=True, pool="eot", class_token=token,
        mlp_dim=shapes[f"{at}transformer.resblocks.0.mlp.c_fc.weight"][0], activation=activation,
        last_norm="pooled" if token else "tokens", out=shapes[f"{at}text_projection"][1],
    )  # fmt: skip
    rules = [
        *to.same(f"{at}token_embedding.weight", "text/token_embed/embedding"),
        *token_table(f"{at}positional_embedding", "text", (length, width)),
        *blocks.rules(f"{at}transformer.resblocks.{{i}}.", "text/transformer", fields["depth"], fields["heads"], resblocks({})),
        *to.norm(f"{at}ln_final", "text/pool_norm" if token else "text/transformer/norm"),
        *to.same(f"{at}text_projection", "text/out/kernel"),
        *(to.shaped(f"{at}cls_emb", "text/cls_token", (width,), (1, 1, width)) if token else []),
    ]
    return fields, rules


BUFFERS = (r"attn_mask$", r"^(input_resolution|context_length|vocab_size)$")


def open_clip(config, shapes):
    """open_clip's and OpenAI's CLIP."""
    activation = "quick_gelu" if config.get("quick_gelu", "input_resolution" in shapes) else "gelu"
    vision, rules = open_clip_vision(config, shapes, activation)
    text, more = open_clip_text(config, shapes, activation, to.base(shapes, "text."))
    return scaled({"encoder": vision, "text": text}, rules + more, shapes, "clip", to.CLIP, buffers=(*Layout.buffers, *BUFFERS))


def coca(config, shapes):
    """open_clip's CoCa: CLIP's towers with pooled queries and a class token, and the decoder."""
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    vision, rules = open_clip_vision(config, shapes, activation)
    text, more = open_clip_text(config, shapes, activation, "text.")
    own, at, depth = config.get("multimodal_cfg", {}), "text_decoder.", depth_of(shapes, r"text_decoder\.resblocks\.(\d+)\.")
    width, vocabulary = shapes[f"{at}text_projection"]
    heads = own.get("heads") or width // 64
    decoder = dict(
        name="caption_decoder", vocab_size=vocabulary, width=width, depth=depth, heads=heads, activation=activation, norm_eps=1e-5,
        mlp_dim=shapes[f"{at}resblocks.0.mlp.c_fc.weight"][0], cross_mlp_dim=shapes[f"{at}cross_attn.0.mlp.c_fc.weight"][0],
        example=to.inputs((1, 1, width), (1, 1, vision["query_width"])),
    )  # fmt: skip
    cross, ours = f"{at}cross_attn.{{i}}.", "decoder/blocks/cross"
    own_rules = blocks.rules(f"{at}resblocks.{{i}}.", "decoder", depth, heads, blocks.OPEN_CLIP)
    rules += more + [
        *(
            to.dataclasses.replace(rule, ours=tuple(name.replace("decoder/blocks/", "decoder/blocks/own/") for name in rule.ours))
            for rule in own_rules
        ),
        *to.norm(f"{cross}ln_1", f"{ours}/norm1", depth),
        *to.norm(f"{cross}ln_1_kv", f"{ours}/norm_memory", depth),
        *attention_to_memory(f"{cross}attn.", f"{ours}/attn", heads, depth),
        *to.norm(f"{cross}ln_2", f"{ours}/norm2", depth),
        *to.linear(f"{cross}mlp.c_fc", f"{ours}/mlp/fc1", depth),
        *to.linear(f"{cross}mlp.c_proj", f"{ours}/mlp/fc2", depth),
        *to.norm(f"{at}ln_final", "decoder/norm"),
        *to.same(f"{at}text_projection", "decoder/out/kernel"),
    ]
    return scaled(
        {"encoder": vision, "text": text, "decoder": decoder}, rules, shapes, "clip", to.CLIP, buffers=(*Layout.buffers, *BUFFERS)
    )


# ---------------------------------------------------------------------------------------------------------------------- out
def towers(parts, tree, model_type, layout):
    """Our two towers -> what an exporter gives: configuration and names of transformers' `model_type`, rules of the layout of its files."""
    if not {"encoder", "text"} <= set(parts):
        raise to.Inexpressible("it has a tower of images and one of texts")
    encoder, tree = with_table(parts["encoder"], tree, class_position=parts["encoder"]["class_token"])
    text = parts["text"]
    if text["name"] != "text" or encoder["position"] != "learned":
        raise to.Inexpressible("its towers are a ViT with learned or fixed positions and a text transformer")
    grid, width, patch = encoder["image_size"] // encoder["patch_size"], encoder["width"], encoder["patch_size"]
    at, words = "vision_model.", "text_model.embeddings."
    shapes = {
        f"{at}embeddings.patch_embedding.weight": (width, encoder["channels"], patch, patch),
        f"{at}embeddings.position_embedding.weight": (grid**2 + encoder["class_token"], width),
        f"{words}token_embedding.weight": (text["vocab_size"], text["width"]),
        f"{words}position_embedding.weight": (text["length"], text["width"]),
        **({f"{at}embeddings.class_embedding": (width,)} if encoder["class_token"] else {}),
        **({f"{at}head.probe": (1, 1, width)} if encoder["pool"] == "map" else {}),
        **({"visual_projection.weight": (encoder["out"], width)} if encoder["out"] else {}),
        **{f"text_{name}.weight": (text["out"], text["width"]) for name in ("projection", "model.head") if text["out"]},
        **{name: (1,) if model_type == "siglip" else () for name in ("logit_scale", "logit_bias") if name in tree},
    }
    vision = dict(to_stack(encoder), image_size=encoder["image_size"], patch_size=patch, num_channels=encoder["channels"])
    reads = dict(to_stack(text), vocab_size=text["vocab_size"], max_position_embeddings=text["length"])
    if model_type == "clip":
        vision, reads = (tower | dict(projection_dim=text["out"]) for tower in (vision, reads))
        reads |= dict(eos_token_id=2 if text["eos"] < 0 else text["eos"])
    else:
        reads |= dict(projection_size=text["out"])
    name = {"clip": "CLIPModel", "siglip": "SiglipModel"}[model_type]
    config = dict(model_type=model_type, architectures=[name], vision_config=vision, text_config=reads, projection_dim=text["out"])
    return f"hf:{model_type}", config, parts | {"encoder": encoder}, tree, layout(config, shapes).rules


def to_clip(parts, tree):
    """A ViT and a causal text transformer -> CLIPModel."""
    if "logit_bias" in tree:
        raise to.Inexpressible("it has no logit bias")
    return towers(parts, tree, "clip", hf_clip)


def to_siglip(parts, tree):
    """A ViT without a class token and a text transformer that sees both ways -> SiglipModel."""
    return towers(parts, tree, "siglip", hf_siglip)


EXPORTS = {"hf": (to_clip, to_siglip)}
NAMES = {
    "hf:clip": hf_clip, "hf:siglip": hf_siglip, "hf:siglip2": hf_siglip, "hf:clip_vision_model": hf_clip, "hf:clip_text_model": hf_clip,
    "hf:siglip_vision_model": hf_siglip,
    "hf:blip": hf_blip, "hf:flava": hf_flava, "open_clip:clip": open_clip, "open_clip:coca": coca,
}  # fmt: skip
