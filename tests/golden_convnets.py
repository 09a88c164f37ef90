"""Golden figures of convolutional networks, Swin Transformers and heads: which of the golden outputs are which of ours.

ADAPTERS: {family: function(entry, config, layout, modules) -> run}; run(tree, {name: array}) -> {name: array}, images channel-first.
"""

import jax.numpy as jnp

from ssljax import losses, models


def channel_first(x):
    """(B, H, W, C) -> (B, C, H, W)."""
    return jnp.moveaxis(x, -1, 1)


def encoder(entry, config, layout, modules):
    """Names of transformers and of timm: whole maps or tokens, pooled vectors (ResNet's as maps of one pixel), logits."""
    train = entry.get("mode") == "train"
    maps = layout.modules["encoder"]["name"] != "swin"

    def run(tree, inputs):
        images = jnp.moveaxis(inputs["pixel_values"], 1, -1)
        mask = inputs.get("bool_masked_pos")
        stats = tree.get("stats", {}).get("encoder", {})
        h, after = models.apply(modules["encoder"], tree["encoder"], stats, images, train=train, **({} if mask is None else {"mask": mask}))
        shape = h["stages"][-1].shape
        last = channel_first(h["patches"].reshape(shape)) if maps else h["patches"]
        hf_resnet = entry["layout"] == "huggingface" and layout.modules["encoder"]["name"] == "resnet"
        pooled = h["pooled"][:, :, None, None] if hf_resnet else h["pooled"]
        out = {"last_hidden_state": last, "pooler_output": pooled, "pooled": pooled, "logits": h.get("embedding", h["pooled"])}
        out["features"] = last if maps else h["patches"].reshape(shape)  # timm's Swin is channel-last
        out |= {f"stage_{i}": channel_first(x) for i, x in enumerate(h["stages"], 1)}
        if after:
            out |= {"running_mean_after": after["bn1"]["mean"], "running_var_after": after["bn1"]["var"]}
        if "decoder" in modules:
            pixels, _ = models.apply(modules["decoder"], tree["decoder"], {}, h["patches"], train=False)
            rebuilt = losses.unpatchify(pixels, modules["decoder"].patch_size)
            out["reconstruction"] = channel_first(rebuilt)
            if mask is not None:
                patch = modules["encoder"].patch_size
                grid = tuple(side // patch for side in images.shape[1:3])
                out["loss"] = losses.simmim(rebuilt, images, mask.reshape(-1, *grid), patch_size=patch)
        if "labels" in inputs:
            out["loss"] = losses.cross_entropy(out["logits"], inputs["labels"])
        return out

    return run


def heads(entry, config, layout, modules):
    """One head, or several in a row: x (B, D) -> y, and the representation behind each."""

    def run(tree, inputs):
        x, out = inputs["x"], {}
        for part, module in modules.items():
            stats = tree.get("stats", {}).get(part, {})
            x, after = models.apply(module, tree[part], stats, x, train=entry["mode"] == "train")
            out[part] = x
            last = after and after[max(after)]
            out |= {f"running_{name}_after": last[name] for name in last or ()}
        return {**out, "y": x}

    return run


ADAPTERS = dict.fromkeys(("resnet", "resnet_timm", "convnext", "convnext_timm", "swin", "swin_timm"), encoder) | {"projection_head": heads}
