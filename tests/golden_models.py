"""Golden figures of models: a public file is read by `ssljax.layouts`, its model run, its outputs and gradients compared.

An adapter of a family says which of the golden outputs are which of ours. As with the losses it knows no entry by name.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from ssljax import layouts, losses, models
from ssljax.errors import UserError
from tests import golden_convnets

MODELS = dict(golden_convnets.ADAPTERS)
PREFIX = {
    "huggingface": "hf",
    "timm": "timm",
    "open_clip": "open_clip",
    "ijepa": "ijepa",
    "torch": "torch",
    "flax_big_vision": "big_vision",
}


class NotCovered(Exception):
    """A model that no layout or adapter of ours can express, and why."""


def model(*families):
    """Registers the adapter of these families: function(entry, config, layout, modules) -> run(tree, inputs) -> outputs."""

    def register(function):
        MODELS.update(dict.fromkeys(families, function))
        return function

    return register


def names_of(entry, config):
    """The layouts that a file of this kind could have, likeliest first."""
    kind = PREFIX[entry["layout"]]
    named = f"{kind}:{config.get('model_type', entry['family'])}"
    return [named] if named in layouts.known() else [name for name in layouts.known() if name.startswith(f"{kind}:")]


def layout_of(entry, folder):
    """-> the configuration and the layout of an entry, from the names and shapes in its file. Raises NotCovered."""
    if entry["family"] not in MODELS:
        raise NotCovered("no adapter")
    config = json.loads((folder / entry["config"]).read_text())
    with safe_open(folder / entry["weights"], framework="numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    problems = []
    for name in names_of(entry, config):
        try:
            layout = layouts.make(name, config, shapes)
            layouts.check_names(layout, shapes)
            return config, layout
        except UserError as error:
            problems.append(str(error))
    raise NotCovered(f"no layout: {problems[0] if problems else 'none of this kind'}")


def check(entry, folder, config, layout, compare):
    """Outputs, gradients of inputs, norms of the parameters' gradients, and the file written back."""
    arrays = load_file(folder / entry["weights"])
    tree = layouts.read(layout, arrays)
    run = MODELS[entry["family"]](entry, config, layout, layouts.modules(layout))
    back = layouts.write(layout, tree)
    for name, array in back.items():
        assert arrays[name].dtype == array.dtype and np.array_equal(arrays[name], array), f"{name} is not written back as it was read"
    tolerance = entry["tolerance"]
    with np.load(folder / entry["file"]) as file, jax.default_matmul_precision("highest"):
        inputs = {name: jnp.asarray(file[f"in_{name}"]) for name in entry["inputs"]}
        chosen = {name: inputs[name] for name in entry.get("gradients") or ()}
        params = {k: v for k, v in tree.items() if k != "stats"}

        def outputs_of(params, chosen):
            return run({**tree, **params}, {**inputs, **chosen})

        if entry.get("gradients_of"):

            def loss(params, chosen):
                outputs = outputs_of(params, chosen)
                return outputs[entry["gradients_of"]], outputs

            (of_params, of_inputs), outputs = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, chosen)
        else:
            of_params, of_inputs, outputs = None, {}, jax.jit(outputs_of)(params, chosen)
        assert set(entry["outputs"]) <= set(outputs) | {"parameter_gradient_norms"}, sorted(set(entry["outputs"]) - set(outputs))
        for name in entry["outputs"]:
            if name != "parameter_gradient_norms":
                compare(name, outputs[name], file[f"out_{name}"], tolerance["value_rtol"], tolerance["atol"])
        for name, value in of_inputs.items():
            compare(f"gradient of {name}", value, file[f"grad_{name}"], tolerance["grad_rtol"], tolerance["atol"])
        if "parameter_gradient_norm_names" in entry:
            zeros = {"stats": jax.tree.map(np.zeros_like, tree["stats"])} if "stats" in tree else {}
            gradients = layouts.write(layout, {**jax.tree.map(np.asarray, of_params), **zeros})
            norms = np.array([np.linalg.norm(gradients[name].astype(np.float64)) for name in entry["parameter_gradient_norm_names"]])
            compare("norms", norms, file["out_parameter_gradient_norms"], tolerance["grad_rtol"], tolerance["atol"])


# ------------------------------------------------------------------------------------------------------------------ encoders
def nhwc(images):
    """Channel-first images or videos (B, T, C, H, W) -> channel-last."""
    return jnp.moveaxis(images, -3, -1)


def encode(modules, tree, images, **kwargs):
    outputs, _ = models.apply(
        modules["encoder"], tree["encoder"], tree.get("stats", {}).get("encoder", {}), images, train=False, layers=True, **kwargs
    )
    return outputs


@model("vit", "dinov2", "dinov3", "msn", "ijepa", "data2vec", "beit", "simmim", "ast")
def hugging_face(entry, config, layout, modules):
    encoder = modules["encoder"]

    def run(tree, inputs):
        if "input_values" in inputs:  # (B, time, mel)
            images = jnp.swapaxes(inputs["input_values"], 1, 2)[..., None]
        else:
            images = nhwc(inputs["pixel_values"])
        mask = inputs.get("bool_masked_pos")
        h = encode(modules, tree, images, mask=mask)
        out = {"last_hidden_state": h["tokens"], "pooler_output": h["pooler"] if encoder.pooler else h["pooled"]}
        out |= {f"hidden_state_{i + 1}": tokens for i, tokens in enumerate(h["layers"])}
        if encoder.out:
            out["logits"] = h["embedding"]
        if "decoder" in modules:
            decoded, _ = models.apply(modules["decoder"], tree["decoder"], {}, h["patches"], train=False)
            if mask is not None and "labels" in inputs:
                labels = (
                    jnp.zeros(mask.size, jnp.int32).at[jnp.nonzero(mask.reshape(-1), size=inputs["labels"].size)[0]].set(inputs["labels"])
                )
                out |= {"logits": decoded, "loss": losses.masked_tokens(decoded, labels.reshape(mask.shape), mask)}
            elif mask is not None:
                size = encoder.patch_size
                rebuilt = losses.unpatchify(decoded, size)
                grid = tuple(side // size for side in images.shape[1:3])
                loss = losses.simmim(rebuilt, images, mask.reshape(-1, *grid), patch_size=size)
                out |= {"reconstruction": jnp.moveaxis(rebuilt, -1, 1), "loss": loss}
        elif "labels" in inputs:
            out["loss"] = losses.cross_entropy(out["logits"], inputs["labels"])
        return out

    return run


@model("vit_timm")
def timm_vit(entry, config, layout, modules):
    def run(tree, inputs):
        h = encode(modules, tree, nhwc(inputs["pixel_values"]))
        return {"features": h["tokens"], "pooled": h["pooled"], "logits": h.get("embedding", h["pooled"])}

    return run


@model("mae")
def mae(entry, config, layout, modules):
    def run(tree, inputs):
        images = nhwc(inputs["pixel_values"])
        keep, mask, restore = losses.random_masking(inputs["noise"], config["mask_ratio"])
        h = encode(modules, tree, images, keep=keep)
        pred, _ = models.apply(modules["decoder"], tree["decoder"], {}, h["patches"], restore, train=False, cls=h["cls"])
        loss = losses.mae(pred, images, mask, patch_size=config["patch_size"], norm_pix_loss=config["norm_pix_loss"])
        return {"loss": loss, "reconstruction": pred, "mask": mask, "ids_restore": restore.astype(jnp.int32)}

    return run


@model("videomae")
def videomae(entry, config, layout, modules):
    def run(tree, inputs):
        videos, mask = nhwc(inputs["pixel_values"]), inputs["bool_masked_pos"]
        masked = entry["outputs"]["logits"]["shape"][1]  # a static count, the same in every row
        order = jnp.argsort(mask, axis=1, stable=True)  # visible first, in their order
        keep, hidden = order[:, : mask.shape[1] - masked], order[:, mask.shape[1] - masked :]
        h = encode(modules, tree, videos, keep=keep)
        restore = jnp.argsort(order, axis=1)
        pred, _ = models.apply(modules["decoder"], tree["decoder"], {}, h["patches"], restore, train=False)
        pred = jnp.take_along_axis(pred, hidden[..., None], axis=1)
        pixels = videos * jnp.array(layouts.IMAGENET["std"]) + jnp.array(layouts.IMAGENET["mean"])
        size = dict(patch_size=config["patch_size"], tubelet=config["tubelet_size"])
        target = losses.video_mae_target(pixels, **size, norm_pix_loss=config["norm_pix_loss"])
        target = jnp.take_along_axis(target, hidden[..., None], axis=1)
        return {"logits": pred, "loss": jnp.mean(jnp.square(pred - target))}

    return run


@model("ijepa_original")
def ijepa_original(entry, config, layout, modules):
    def run(tree, inputs):
        images, context_ids, target_ids = nhwc(inputs["pixel_values"]), inputs["masks_enc"], inputs["masks_pred"]
        full = encode(modules, tree, images)["tokens"]
        context = jnp.concatenate([encode(modules, tree, images, keep=ids)["tokens"] for ids in context_ids])
        predictions = []
        for target in target_ids:
            for i, ids in enumerate(context_ids):
                part = context[i * len(images) : (i + 1) * len(images)]
                predictions.append(models.apply(modules["predictor"], tree["predictor"], {}, part, ids, target, train=False)[0])
        targets = losses.ijepa_targets(full, target_ids)
        predictions = jnp.stack(predictions).reshape(len(target_ids), len(context_ids), *targets.shape[1:])
        loss = losses.ijepa(predictions, targets)
        targets = jnp.repeat(targets[:, None], len(context_ids), axis=1)
        predictions, targets = (x.reshape(-1, *x.shape[3:]) for x in (predictions, targets))
        return {
            "context": context,
            "predictions": predictions,
            "full": full,
            "targets": targets,
            "loss": loss,
        }

    return run


# ------------------------------------------------------------------------------------------------------------ image and text
def towers(modules, tree, images, ids, valid=None, **kwargs):
    """-> outputs of the image tower, of the text tower, and both embeddings, unit norm."""
    image = encode(modules, tree, images)
    text, _ = models.apply(modules["text"], tree["text"], {}, ids, train=False, valid=valid, layers=True, **kwargs)
    return image, text, *(losses.normalise(h.get("embedding", h["pooled"])) for h in (image, text))


@model("clip", "siglip")
def clip_or_siglip(entry, config, layout, modules):
    def run(tree, inputs):
        valid = inputs["attention_mask"].astype(bool) if "attention_mask" in inputs else None
        image, text, x, y = towers(modules, tree, nhwc(inputs["pixel_values"]), inputs["input_ids"], valid)
        scale, bias = jnp.exp(tree["logit_scale"]), tree.get("logit_bias", 0.0)
        loss = losses.siglip(x, y, scale, bias) if "logit_bias" in tree else losses.clip_softmax(x, y, scale)
        return {
            "loss": loss, "logits_per_image": scale * x @ y.T + bias, "image_embeds": x, "text_embeds": y,
            "text_last_hidden_state": text["tokens"], "vision_last_hidden_state": image["tokens"],
            "vision_pooled": image.get("embedding", image["pooled"]), "text_pooled": text["embedding"],
        }  # fmt: skip

    return run


@model("blip")
def blip(entry, config, layout, modules):
    def run(tree, inputs):
        valid = inputs["attention_mask"].astype(bool)
        image, _, x, y = towers(modules, tree, nhwc(inputs["pixel_values"]), inputs["input_ids"], valid)
        args = dict(train=False, valid=valid, memory=image["tokens"])
        both, _ = models.apply(modules["text"], tree["text"], {}, inputs["input_ids"], **args)
        match, _ = models.apply(modules["match"], tree["match"], {}, both["tokens"][:, 0], train=False)
        return {"itm_score": match, "itc_score": x @ y.T}

    return run


@model("flava")
def flava(entry, config, layout, modules):
    def run(tree, inputs):
        valid = inputs["attention_mask"].astype(bool)
        image, text, _, _ = towers(modules, tree, nhwc(inputs["pixel_values"]), inputs["input_ids"], valid)
        seen = jnp.concatenate([jnp.ones((len(valid), 1 + image["tokens"].shape[1]), bool), valid], axis=1)
        both, _ = models.apply(modules["fusion"], tree["fusion"], {}, image["layers"][-1], text["layers"][-1], train=False, valid=seen)
        return {"image_embeddings": image["tokens"], "text_embeddings": text["tokens"], "multimodal_embeddings": both["tokens"]}

    return run


@model("openclip")
def openclip(entry, config, layout, modules):
    def run(tree, inputs):
        _, _, x, y = towers(modules, tree, nhwc(inputs["image"]), inputs["text"])
        scale = jnp.exp(tree["logit_scale"])
        return {"image_features": x, "text_features": y, "logit_scale": scale, "loss": losses.clip_softmax(x, y, scale)}

    return run


@model("coca")
def coca(entry, config, layout, modules):
    def run(tree, inputs):
        labels = inputs["text"][:, 1:]
        image, text, x, y = towers(modules, tree, nhwc(inputs["image"]), inputs["text"])
        logits, _ = models.apply(modules["decoder"], tree["decoder"], {}, text["tokens"][:, :-1], image["memory"], train=False)
        scale = jnp.exp(tree["logit_scale"])
        contrastive, caption = losses.clip_softmax(x, y, scale), 2.0 * losses.caption(logits, labels, pad=0)
        return {
            "image_features": x, "text_features": y, "logits": logits, "logit_scale": scale, "contrastive": contrastive, "caption": caption,
            "loss": contrastive + caption, "labels": labels,
        }  # fmt: skip

    return run


# --------------------------------------------------------------------------------------------------------------- big_vision
@model("vit_flax")
def vit_flax(entry, config, layout, modules):
    def run(tree, inputs):
        h = encode(modules, tree, inputs["image"])
        return {"logits": h.get("embedding", h["pooled"]), "encoded": h["tokens"], "pooled": h["pooled"]}

    return run


@model("siglip_flax")
def siglip_flax(entry, config, layout, modules):
    def run(tree, inputs):
        _, _, x, y = towers(modules, tree, inputs["image"], inputs["text"])
        scale, bias = jnp.exp(tree["logit_scale"]), tree["logit_bias"]
        loss = losses.siglip(x, y, scale, bias)
        logits = scale * x @ y.T + bias
        return {"image_embeds": x, "text_embeds": y, "scale": scale[None], "bias": bias[None], "logits": logits, "loss": loss}

    return run
