"""big_vision's parameters (npz), whose trees are Flax Linen's: ViT, and the two towers of SigLIP and LiT.

Layers are one by one ("encoderblock_0") or stacked by nn.scan ("encoderblock"); images are channel-last as ours.
"""

import re

import numpy as np

from ssljax import layouts as to
from ssljax.layouts import Layout, Rule


def dense(theirs, ours, layers=0, bias=True):
    """A kernel as it is, and its bias."""
    return [*to.same(f"{theirs}/kernel", f"{ours}/kernel", layers), *(to.same(f"{theirs}/bias", f"{ours}/bias", layers) if bias else [])]


def norm(theirs, ours, layers=0):
    return [*to.same(f"{theirs}/scale", f"{ours}/scale", layers), *to.same(f"{theirs}/bias", f"{ours}/bias", layers)]


def attention(theirs, ours, layers):
    """nn.MultiHeadDotProductAttention's query, key, value (D, H, D / H) -> "qkv"."""

    def fused(leaf, axis):
        names = tuple(f"{theirs}/{name}/{leaf}" for name in ("query", "key", "value"))
        split = lambda w: tuple(np.moveaxis(w, axis, 0))  # noqa: E731
        return Rule(names, (f"{ours}/qkv/{leaf}",), lambda *w: (np.stack(w, axis),), split, layers)

    return [fused("kernel", 1), fused("bias", 0), *dense(f"{theirs}/out", f"{ours}/proj", layers)]


def blocks(at, ours, depth, scanned):
    block = f"{at}encoderblock" if scanned else f"{at}encoderblock_{{i}}"
    at = f"{ours}/blocks"
    rules = [
        *norm(f"{block}/LayerNorm_0", f"{at}/norm1", depth),
        *attention(f"{block}/MultiHeadDotProductAttention_0", f"{at}/attn", depth),
        *norm(f"{block}/LayerNorm_1", f"{at}/norm2", depth),
        *dense(f"{block}/MlpBlock_0/Dense_0", f"{at}/mlp/fc1", depth),
        *dense(f"{block}/MlpBlock_0/Dense_1", f"{at}/mlp/fc2", depth),
    ]
    return [over_layers(rule) for rule in rules] if scanned else rules


def over_layers(rule):
    """The rule of one layer, for arrays that hold all of them on axis 0."""

    def each(function):
        return lambda *arrays: tuple(
            np.stack(parts) for parts in zip(*(function(*layer) for layer in zip(*arrays, strict=True)), strict=True)
        )

    return to.dataclasses.replace(rule, read=each(rule.read), write=each(rule.write), layers=0)


def tower(shapes, at, encoder):
    """-> fields that every tower has, rules of its blocks; `encoder`: what its Transformer is called."""
    block = f"{at}{encoder}/encoderblock"
    scanned = f"{block}/LayerNorm_0/scale" in shapes
    counts = [int(m[1]) for name in shapes if (m := re.match(re.escape(block) + r"_(\d+)/", name))]
    depth = shapes[f"{block}/LayerNorm_0/scale"][0] if scanned else 1 + max(counts, default=-1)
    first = block if scanned else f"{block}_0"
    width, heads, _ = shapes[f"{first}/MultiHeadDotProductAttention_0/query/kernel"][-3:]
    fields = dict(width=width, depth=depth, heads=heads, mlp_dim=shapes[f"{first}/MlpBlock_0/Dense_0/bias"][-1], activation="gelu_tanh")
    return fields, depth, scanned


def vit(config, shapes, at=""):
    """big_vision's models/vit.py."""
    patch, _, channels, _ = shapes[f"{at}embedding/kernel"]
    fields, depth, scanned = tower(shapes, at, "Transformer")
    ours, table = "encoder", shapes.get(f"{at}pos_embedding")
    grid = round(table[1] ** 0.5) if table else side_of(config, patch)
    class_token = f"{at}cls" in shapes
    fields = dict(
        fields, name="vit", patch_size=patch, image_size=grid * patch, channels=channels, class_token=class_token,
        position="learned" if table else "sincos_big_vision", resize="linear_corners",
        pool="map" if f"{at}MAPHead_0/probe" in shapes else "cls" if class_token else "gap",
    )  # fmt: skip
    rules = [
        *dense(f"{at}embedding", f"{ours}/patch_embed"),
        *(to.same(f"{at}pos_embedding", f"{ours}/pos_embed") if table else []),
        *(to.same(f"{at}cls", f"{ours}/cls_token") if class_token else []),
        *blocks(f"{at}Transformer/", f"{ours}/transformer", depth, scanned),
        *norm(f"{at}Transformer/encoder_norm", f"{ours}/transformer/norm"),
    ]
    if fields["pool"] == "map":
        head = f"{at}MAPHead_0"
        rules += [
            *to.same(f"{head}/probe", f"{ours}/pool/probe"),
            *(r for name in ("query", "key", "value", "out")
              for r in dense(f"{head}/MultiHeadDotProductAttention_0/{name}", f"{ours}/pool/attn/{name}")),
            *norm(f"{head}/LayerNorm_0", f"{ours}/pool/norm"),
            *dense(f"{head}/MlpBlock_0/Dense_0", f"{ours}/pool/mlp/fc1"),
            *dense(f"{head}/MlpBlock_0/Dense_1", f"{ours}/pool/mlp/fc2"),
        ]  # fmt: skip
    if f"{at}head/kernel" in shapes:
        fields |= dict(out=shapes[f"{at}head/kernel"][1], out_bias=f"{at}head/bias" in shapes)
        rules += dense(f"{at}head", f"{ours}/out", bias=fields["out_bias"])
    return Layout({"encoder": fields}, tuple(rules), normalise=to.HALF)


def side_of(config, patch):
    """Patches a side of a model without a table: of the config's image size, or 224 pixels."""
    return config.get("image_size", 224) // patch


def two_towers(config, shapes):
    """big_vision's models/proj/image_text/two_towers.py: SigLIP, LiT."""
    image = vit(config.get("image", {}), shapes, "img/")
    at = "txt/"
    fields, depth, scanned = tower(shapes, at, "Encoder_0")
    vocabulary = shapes[f"{at}Embed_0/embedding"][0]
    fields = dict(
        fields,
        name="text",
        vocab_size=vocabulary,
        length=shapes[f"{at}pos_embedding"][1],
        pool=config.get("text", {}).get("pool_type", "last"),
    )
    fields |= dict(out=shapes[f"{at}head/kernel"][1], out_bias=True) if f"{at}head/kernel" in shapes else {}
    rules = [
        *image.rules,
        *to.same(f"{at}Embed_0/embedding", "text/token_embed/embedding"),
        *to.same(f"{at}pos_embedding", "text/pos_embed"),
        *blocks(f"{at}Encoder_0/", "text/transformer", depth, scanned),
        *norm(f"{at}Encoder_0/encoder_norm", "text/transformer/norm"),
        *(dense(f"{at}head", "text/out") if f"{at}head/kernel" in shapes else []),
        *to.shaped("t", "logit_scale", shapes["t"], ()),
        *(to.shaped("b", "logit_bias", shapes["b"], ()) if "b" in shapes else []),
    ]
    parts = dict(image.modules, text=fields, logit_scale={"shape": ()}) | ({"logit_bias": {"shape": ()}} if "b" in shapes else {})
    return Layout(parts, tuple(rules), method={"name": "siglip" if "b" in shapes else "clip"}, normalise=to.HALF)


NAMES = {"big_vision:vit": vit, "big_vision:siglip": two_towers}
