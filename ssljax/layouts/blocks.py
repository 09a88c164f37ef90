"""Rules of a stack of transformer blocks, for every code base: only what the layers are called differs."""

from ssljax import layouts as to

# What each code base calls the layers of a block, behind its prefix.
HF_VIT = dict(
    norm1="layernorm_before", q="attention.attention.query", k="attention.attention.key", v="attention.attention.value",
    proj="attention.output.dense", norm2="layernorm_after", fc1="intermediate.dense", fc2="output.dense",
)  # fmt: skip
HF_CLIP = dict(
    norm1="layer_norm1", q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj", proj="self_attn.out_proj",
    norm2="layer_norm2", fc1="mlp.fc1", fc2="mlp.fc2",
)  # fmt: skip
HF_BERT = dict(
    q="attention.self.query", k="attention.self.key", v="attention.self.value", proj="attention.output.dense",
    norm1="attention.output.LayerNorm", fc1="intermediate.dense", fc2="output.dense", norm2="output.LayerNorm",
)  # fmt: skip
TIMM = dict(norm1="norm1", qkv="attn.qkv", proj="attn.proj", norm2="norm2", fc1="mlp.fc1", fc2="mlp.fc2")
OPEN_CLIP = dict(norm1="ln_1", in_proj="attn.in_proj_", proj="attn.out_proj", norm2="ln_2", fc1="mlp.c_fc", fc2="mlp.c_proj")


def rules(theirs, ours, depth, heads, names, *, qkv_bias="all"):
    """theirs: prefix with "{i}", "encoder.layer.{i}."; ours: "encoder/transformer". names: one of the dicts above, with "scale1", "scale2"
    (full names), "gate" or "gate_fused", "q_bias" and "v_bias", "q_norm" and "k_norm" where a family has them. -> list of Rule."""
    ours = f"{ours}/blocks"
    their = {key: theirs + name for key, name in names.items()}
    out = [*to.norm(their["norm1"], f"{ours}/norm1", depth), *to.norm(their["norm2"], f"{ours}/norm2", depth)]
    if "qkv" in names:
        bias = f"{their['qkv']}.bias" if qkv_bias == "all" else ""
        out += to.heads_fused(f"{their['qkv']}.weight", bias, f"{ours}/attn/qkv", heads, depth)
    elif "in_proj" in names:
        out += to.heads_fused(f"{their['in_proj']}weight", f"{their['in_proj']}bias", f"{ours}/attn/qkv", heads, depth)
    else:
        biases = {
            "all": None,
            "none": ["", "", ""],
            "no_key": [their.get("q_bias", f"{their['q']}.bias"), "", their.get("v_bias", f"{their['v']}.bias")],
        }[qkv_bias]
        out += to.heads_in([their[key] for key in "qkv"], f"{ours}/attn/qkv", heads, depth, biases)
    out += to.heads_out(their["proj"], f"{ours}/attn/proj", heads, depth)
    for key in ("q_norm", "k_norm"):
        if key in names:
            out += to.norm(their[key], f"{ours}/attn/{key}", depth)
    if "gate_fused" in names:
        out += to.gated_fused(their["gate_fused"], f"{ours}/mlp", depth)
    else:
        out += to.linear(their["fc1"], f"{ours}/mlp/fc1", depth)
    if "gate" in names:
        out += to.linear(their["gate"], f"{ours}/mlp/gate", depth)
    out += to.linear(their["fc2"], f"{ours}/mlp/fc2", depth)
    for key in ("scale1", "scale2"):
        if key in names:
            out += to.same(their[key], f"{ours}/{key}/gamma", depth)
    return out


def cross(theirs, ours, depth, heads, q, k, v, proj, norm):
    """Rules of the cross-attention of each block; names behind the prefix `theirs`."""
    ours = f"{ours}/blocks"
    return [
        *to.norm(theirs + norm, f"{ours}/norm_cross", depth),
        *to.heads_in([theirs + q], f"{ours}/cross/q", heads, depth),
        *to.heads_in([theirs + k, theirs + v], f"{ours}/cross/kv", heads, depth),
        *to.heads_out(theirs + proj, f"{ours}/cross/proj", heads, depth),
    ]
