"""Golden figures: inputs and outputs of public implementations (tests/golden/README.md), and ours against them.

One adapter a family says which of our functions takes which arrays and settings. It knows no entry by name: it reads
the entry's settings and the names of its arrays, refuses what it cannot express (NotCovered), and returns a function of
the input arrays. SSLJAX_GOLDEN names another folder (or its index) of the same form. Entries that no adapter takes are
counted and listed, never passed.
"""

import collections
import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax import losses, optim, schedules, trees

pytestmark = pytest.mark.quick

INDEX = pathlib.Path(os.environ.get("SSLJAX_GOLDEN") or pathlib.Path(__file__).parent / "golden")
INDEX = INDEX if INDEX.suffix == ".json" else INDEX / "index.json"
AT_LEAST = 68  # covered entries of the default folder: to lose one is a failure, not a line in a list

# Arrays of a covered entry that are not compared, since no function of ours returns them; the summary names them.
# Intermediates of the score and of the loss, which are compared.
NOT_COMPARED = {"rankme": {"singular_values"}, "unicl": {"i2t", "t2i"}}


class NotCovered(Exception):
    """An entry whose settings or arrays our functions cannot express, and why."""


ADAPTERS, EAGER = {}, set()


def adapter(*families, eager=False):
    """Registers the adapter of these families. eager: its function leaves JAX on the way, so it cannot be jitted."""

    def register(function):
        ADAPTERS.update(dict.fromkeys(families, function))
        EAGER.update(families if eager else ())
        return function

    return register


def settings(values, *required, **optional):
    """Hyper-parameters as a namespace; NotCovered if one is missing or unknown. Adapters honour every one."""
    missing, unknown = set(required) - set(values), set(values) - set(required) - set(optional)
    if missing or unknown:
        raise NotCovered(f"settings: {sorted(missing)} missing, {sorted(unknown)} unknown")
    return collections.namedtuple("Settings", [*required, *optional])(**{**optional, **values})


def arrays(entry, *required, optional=()):
    """NotCovered unless the entry has these inputs and no other."""
    given = set(entry["inputs"])
    if set(required) - given or given - set(required) - set(optional):
        raise NotCovered(f"inputs {sorted(given)}, expected {sorted(required)}")


def has(entry, name):
    return name in entry["inputs"]


# ---------------------------------------------------------------------------------------------------------- contrastive
@adapter("simclr_ntxent")
def simclr_ntxent(entry):
    h = settings(entry["hyper_parameters"], "temperature")
    arrays(entry, "z0", "z1")
    unit = losses.normalise
    return lambda z0, z1: {"loss": losses.nt_xent(unit(z0), unit(z1), temperature=h.temperature)}


@adapter("simclr_multi_positive")
def simclr_multi_positive(entry):
    h = settings(entry["hyper_parameters"], "temperature")
    arrays(entry, "z", "indexes")
    return lambda z, indexes: {"loss": losses.multi_positive(losses.normalise(z), indexes, temperature=h.temperature)}


@adapter("ntxent_by_labels", "ntxentloss")
def ntxent_by_labels(entry):
    h = settings(entry["hyper_parameters"], "temperature")
    arrays(entry, "embeddings", "labels")
    return lambda embeddings, labels: {"loss": losses.pair_nt_xent(losses.normalise(embeddings), labels, temperature=h.temperature)}


@adapter("clip_softmax")
def clip_softmax(entry):
    settings(entry["hyper_parameters"], features_normalised_by_caller=True)  # either way they are used as they come
    arrays(entry, "image_features", "text_features", "logit_scale", optional=("logit_bias",))
    return lambda image_features, text_features, logit_scale, logit_bias=0.0: {
        "loss": losses.clip_softmax(image_features, text_features, logit_scale, logit_bias)
    }


@adapter("siglip")
def siglip(entry):
    settings(entry["hyper_parameters"])
    arrays(entry, "image_features", "text_features", "logit_scale", optional=("logit_bias",))
    return lambda image_features, text_features, logit_scale, logit_bias=0.0: {
        "loss": losses.siglip(image_features, text_features, logit_scale, logit_bias)
    }


@adapter("moco_infonce_queue")
def moco_infonce_queue(entry):
    h = settings(entry["hyper_parameters"], "temperature")
    if has(entry, "query"):  # unit norm as given, one negative a column
        arrays(entry, "query", "key", "queue")
        return lambda query, key, queue: {"loss": losses.info_nce(query, key, queue=queue.T, temperature=h.temperature)}
    arrays(entry, "z0", "z1", "bank")

    def memory_bank(z0, z1, bank):  # normalises inside, one negative a row, a fresh pointer
        q, k = losses.normalise(z0), losses.normalise(z1)
        after, pointer = losses.enqueue(bank, jnp.int32(0), k, overflow="drop")
        loss = losses.info_nce(q, k, queue=bank, temperature=h.temperature)
        return {"loss": loss, "bank_after": after, "pointer_after": pointer[None]}

    return memory_bank


@adapter("queue")
def queue(entry):
    h = settings(entry["hyper_parameters"], "size")
    batches = [f"batch{i}" for i in range(len(entry["inputs"]) - 1)]
    arrays(entry, "bank", *batches)
    if entry["inputs"]["bank"]["shape"][0] != h.size:
        raise NotCovered(f"bank of {entry['inputs']['bank']['shape']}, size {h.size}")

    def function(bank, **rest):
        out, pointer = {}, jnp.int32(0)
        for i, name in enumerate(batches):
            bank, pointer = losses.enqueue(bank, pointer, rest[name], overflow="drop")
            out |= {f"bank{i}": bank, f"pointer{i}": pointer[None]}
        return out

    return function


@adapter("mocov3")
def mocov3(entry):
    h = settings(entry["hyper_parameters"], "temperature")
    arrays(entry, "q1", "q2", "k1", "k2")

    def function(q1, q2, k1, k2):
        q1, q2, k1, k2 = map(losses.normalise, (q1, q2, k1, k2))
        first = 2 * h.temperature * losses.info_nce(q1, k2, temperature=h.temperature)
        return {"loss": losses.moco_v3(q1, q2, k1, k2, temperature=h.temperature), "first_half": first}

    return function


@adapter("dcl", "dclw")
def dcl(entry):
    h = settings(entry["hyper_parameters"], "temperature", sigma=None)
    arrays(entry, "z0", "z1")
    return lambda z0, z1: {"loss": losses.dcl(losses.normalise(z0), losses.normalise(z1), **h._asdict())}


@adapter("unicl")
def unicl(entry):
    settings(entry["hyper_parameters"])
    arrays(entry, "image_features", "text_features", "labels", "logit_scale")

    return lambda image_features, text_features, labels, logit_scale: {
        "loss": losses.unicl(image_features, text_features, labels, logit_scale)
    }


@adapter("distill_clip")
def distill_clip(entry):
    settings(entry["hyper_parameters"])
    teacher = ("dist_image_features", "dist_text_features", "dist_logit_scale")
    arrays(entry, "image_features", "text_features", "logit_scale", *teacher)

    def function(image_features, text_features, logit_scale, dist_image_features, dist_text_features, dist_logit_scale):
        student = (image_features, text_features, logit_scale)
        contrastive = losses.clip_softmax(*student)
        distill = losses.distill_clip(*student, dist_image_features, dist_text_features, dist_logit_scale)
        return {"contrastive": contrastive, "distill": distill, "loss": contrastive + distill}

    return function


@adapter("npair")
def npair(entry):
    h = settings(entry["hyper_parameters"], "normalize_embeddings", "pairs")
    arrays(entry, "embeddings", "labels")
    if h.pairs != "anchor = rows 0,2,4..., positive = rows 1,3,5...":
        raise NotCovered(f"pairs: {h.pairs}")

    def function(embeddings, labels):
        z = losses.normalise(embeddings) if h.normalize_embeddings else embeddings
        return {"loss": losses.info_nce(z[0::2], z[1::2], temperature=1.0)}

    return function


@adapter("supcon")
def supcon(entry):
    if has(entry, "embeddings"):
        h = settings(entry["hyper_parameters"], "temperature")
        arrays(entry, "embeddings", "labels")
        return lambda embeddings, labels: {"loss": losses.supcon(losses.normalise(embeddings), labels, temperature=h.temperature)}
    h = settings(entry["hyper_parameters"], "temperature", "base_temperature", contrast_mode="all")
    arrays(entry, "features", optional=("labels",))
    batch, views, _ = entry["inputs"]["features"]["shape"]
    if views < 2 or h.contrast_mode not in ("all", "one"):
        raise NotCovered(f"{views} views, contrast_mode {h.contrast_mode}")
    anchors = {"all": batch * views, "one": batch}[h.contrast_mode]

    def function(features, labels=None):
        z = jnp.concatenate(list(jnp.moveaxis(features, 1, 0)))  # view-major
        labels = jnp.tile(jnp.arange(batch) if labels is None else labels, views)
        factor = h.temperature / h.base_temperature
        return {"loss": factor * losses.supcon(z, labels, temperature=h.temperature, anchors=anchors)}

    return function


# ---------------------------------------------------------------------------------------- self-distillation and masking
@adapter("dino")
def dino(entry):
    h = settings(
        entry["hyper_parameters"],
        *("n_crops", "student_temp", "warmup_teacher_temp", "teacher_temp", "warmup_epochs", "epochs", "epoch"),
        *("teacher_temp_in_effect", "center_momentum"),
    )
    arrays(entry, "student", "teacher", "center")
    ramp = dict(warmup_steps=h.warmup_epochs, warmup_start=h.warmup_teacher_temp, warmup="within")
    temperature_at = schedules.constant(h.teacher_temp, h.epochs, **ramp)

    def function(student, teacher, center):
        temperature = temperature_at(jnp.int32(h.epoch))  # what the entry calls teacher_temp_in_effect
        student = student.reshape(h.n_crops, -1, student.shape[-1])  # (V, B, K)
        teacher = teacher.reshape(-1, *student.shape[1:])  # (G, B, K)
        temperatures = dict(student_temperature=h.student_temp, teacher_temperature=temperature)
        return {
            "loss": losses.dino(student, teacher, center[0], **temperatures),
            "center_after": losses.update_centre(center[0], teacher, h.center_momentum)[None],
        }

    return function


@adapter("mae")
def mae(entry):
    h = settings(entry["hyper_parameters"], "patch_size", "norm_pix_loss")
    arrays(entry, "images", "pred", "mask")
    return lambda images, pred, mask: {
        "loss": losses.mae(pred, images.transpose(0, 2, 3, 1), mask, **h._asdict())  # channels first in the file
    }


@adapter("patchify")
def patchify(entry):
    h = settings(entry["hyper_parameters"], "patch_size")
    arrays(entry, "images")
    return lambda images: {"patches": losses.patchify(images.transpose(0, 2, 3, 1), h.patch_size)}


@adapter("masking")
def masking(entry):
    h = settings(entry["hyper_parameters"], "mask_ratio")
    arrays(entry, "tokens", "noise")

    def function(tokens, noise):
        keep, mask, restore = losses.random_masking(noise, h.mask_ratio)
        return {"kept": jnp.take_along_axis(tokens, keep[..., None], axis=1), "mask": mask, "ids_restore": restore}

    return function


@adapter("sincos_2d", eager=True)
def sincos_2d(entry):
    from ssljax.models.positions import sincos_2d as table

    values = entry["hyper_parameters"]
    arrays(entry)
    rows = None
    if "height" in values:
        h = settings(values, "height", "width", "dim")
        size, layout, cls_token = (h.height, h.width), "big_vision", False
    elif "cls_token" in values:
        h = settings(values, "grid", "dim", "cls_token", rows_given=None)
        size, layout, cls_token, rows = (h.grid, h.grid), "mae", h.cls_token, h.rows_given
    else:
        h = settings(values, "grid", "dim")
        size, layout, cls_token = (h.grid, h.grid), "moco_v3", True

    def function():
        embedding = np.asarray(table(*size, h.dim, layout=layout, cls_token=cls_token))
        if rows is None:
            return {"embedding": embedding}
        flat = embedding.astype(np.float64).ravel()
        weighted = np.sum(flat * np.arange(1, flat.size + 1)) / flat.size
        return {"rows": embedding[rows], "sum": flat.sum(), "abs_sum": np.abs(flat).sum(), "weighted_sum": weighted}

    return function


# ------------------------------------------------------------------------------------------- schedules, EMA, optimizers
@adapter("schedule")
def schedule(entry):
    """A code base is recognised by the names of its settings."""
    values = entry["hyper_parameters"]
    names = set(values)
    if has(entry, "epoch"):
        arrays(entry, "epoch")
    else:
        arrays(entry)
    count = next(iter(entry["outputs"].values()))["shape"][0]

    def at(f, steps=None):
        return {"values": f(jnp.arange(count) if steps is None else steps)}

    if "iterations_per_epoch" in names:  # DINO
        h = settings(values, "base_value", "final_value", "epochs", "iterations_per_epoch", warmup_epochs=0, start_warmup_value=0)
        ramp = dict(warmup_steps=h.warmup_epochs * h.iterations_per_epoch, warmup_start=h.start_warmup_value)
        steps = h.epochs * h.iterations_per_epoch
        return lambda: at(schedules.cosine(h.base_value, h.final_value, steps, **ramp, warmup="within"))
    if "warmup_teacher_temp" in names:  # DINO's teacher temperature, per epoch
        h = settings(values, "warmup_teacher_temp", "teacher_temp", "warmup_epochs", "epochs")
        ramp = dict(warmup_steps=h.warmup_epochs, warmup_start=h.warmup_teacher_temp, warmup="within")
        return lambda: at(schedules.constant(h.teacher_temp, h.epochs, **ramp))
    if names >= {"start", "end"}:  # lightly
        h = settings(values, "steps", "start", "end", warmup_steps=None)
        ramp = dict(warmup_steps=h.warmup_steps or 0, warmup="ahead")
        return lambda: at(schedules.cosine(h.start, h.end, h.steps, reach_final=True, **ramp))
    if "min_lr" in names:  # MAE, in fractional epochs
        h = settings(values, "lr", "min_lr", "warmup_epochs", "epochs")
        f = schedules.cosine(h.lr, h.min_lr, h.epochs, warmup_steps=h.warmup_epochs)
        return lambda epoch: at(f, epoch)
    if names == {"lr", "weight_decay"}:  # I-JEPA: successive calls, the first is step 1
        lr = settings(values["lr"], "warmup_steps", "start_lr", "ref_lr", "T_max", final_lr=0.0)
        wd = settings(values["weight_decay"], "ref_wd", "final_wd", "T_max")
        ramp = dict(warmup_steps=lr.warmup_steps, warmup_start=lr.start_lr)
        return lambda: {
            "lr": schedules.cosine(lr.ref_lr, lr.final_lr, lr.T_max, **ramp)(1 + jnp.arange(count)),
            "weight_decay": schedules.cosine(wd.ref_wd, wd.final_wd, wd.T_max)(1 + jnp.arange(count)),
        }
    if "decay_type" in names:  # big_vision
        common = dict(base=1.0, warmup_steps=0, cooldown_steps=0)
        kind = values["decay_type"]
        if kind == "cosine":
            h = settings(values, "total_steps", "decay_type", **common)
            make = lambda **ramp: schedules.cosine(h.base, 0.0, h.total_steps, **ramp)  # noqa: E731
        elif kind in ("linear", "polynomial"):
            h = settings(values, "total_steps", "decay_type", power=1, end=None, linear_end=0.0, **common)
            final = h.linear_end if h.end is None else h.end
            make = lambda **ramp: schedules.linear(h.base, final, h.total_steps, power=h.power, **ramp)  # noqa: E731
        elif kind == "rsqrt":
            h = settings(values, "total_steps", "decay_type", timescale=10_000, **common)
            make = lambda **ramp: schedules.rsqrt(h.base, h.total_steps, timescale=h.timescale, **ramp)  # noqa: E731
        else:
            raise NotCovered(f"decay_type {kind}")
        return lambda: at(make(warmup_steps=h.warmup_steps, cooldown_steps=h.cooldown_steps))
    if "peak_value" in names:  # optax
        h = settings(values, "init_value", "peak_value", "warmup_steps", "decay_steps", end_value=0.0)
        ramp = dict(warmup_steps=h.warmup_steps, warmup_start=h.init_value)
        return lambda: at(schedules.cosine(h.peak_value, h.end_value, h.decay_steps, **ramp))
    raise NotCovered(f"settings {sorted(names)}")


@adapter("ema")
def ema(entry):
    h = settings(entry["hyper_parameters"], "base_tau", "final_tau", "max_steps")
    arrays(entry, "online", "momentum")
    count = entry["outputs"]["tau"]["shape"][0]

    def function(online, momentum):
        tau = schedules.cosine(h.base_tau, h.final_tau, h.max_steps)(jnp.arange(count))
        weights, tree = [], {"w": momentum}
        for decay in tau:
            tree = trees.ema(tree, {"w": online}, decay)
            weights.append(tree["w"])
        return {"tau": tau, "weights": jnp.stack(weights)}

    return function


def optimizer_settings(entry, vectors):
    """-> name, learning rate, weight decay, steps, settings of `optim.make`. vectors: regex of the 1-D parameters."""
    values = dict(entry["hyper_parameters"])
    name = re.split(r"[.:]", entry["source"]["object"])[-1].lower()
    plain = ((vectors, optim.Rule(weight_decay=0.0)),) if vectors else ()
    everything = ((".*", optim.Rule(weight_decay=1.0)),)
    if name == "sgd":
        h = settings(values, "lr", "steps", momentum=0.0, weight_decay=0.0, nesterov=False)
        hyper = dict(momentum=h.momentum, nesterov=h.nesterov, groups=everything)
    elif name == "adamw":
        h = settings(values, "lr", "steps", betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
        hyper = dict(b1=h.betas[0], b2=h.betas[1], eps=h.eps, groups=everything)
    elif name == "lion":
        h = settings(values, "lr", "steps", betas=(0.9, 0.99), weight_decay=0.0)
        hyper = dict(b1=h.betas[0], b2=h.betas[1], groups=everything)
    elif name == "lamb":
        h = settings(values, "lr", "steps", betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, max_grad_norm=1.0)
        hyper = dict(b1=h.betas[0], b2=h.betas[1], eps=h.eps, clip_norm=h.max_grad_norm, groups=everything)
    elif name == "lars":
        common = dict(weight_decay=0.0, momentum=0.9)
        if "clip_lr" in values:  # solo-learn
            h = settings(values, "lr", "steps", "eta", "clip_lr", "exclude_bias_n_norm", eps=1e-8, nesterov=False, **common)
            exclude = h.exclude_bias_n_norm
            hyper = dict(trust_coefficient=h.eta, eps=h.eps, norm="separate", clip=h.clip_lr, nesterov=h.nesterov)
        elif "eps" in values:  # lightly
            h = settings(values, "lr", "steps", "trust_coefficient", "eps", nesterov=False, **common)
            exclude = False
            hyper = dict(trust_coefficient=h.trust_coefficient, eps=h.eps, norm="separate", nesterov=h.nesterov)
            hyper |= dict(always_adapt=False)
        elif "eta" in values:  # Barlow Twins
            h = settings(values, "lr", "steps", "eta", "filters", **common)
            exclude = h.filters
            hyper = dict(trust_coefficient=h.eta)
        else:  # MoCo v3
            h = settings(values, "lr", "steps", "trust_coefficient", **common)
            exclude = True
            hyper = dict(trust_coefficient=h.trust_coefficient)
        hyper |= dict(momentum=h.momentum, exclude=vectors if exclude else None)
        hyper |= dict(groups=(*plain, *everything) if exclude else everything)
    else:
        raise NotCovered(f"optimizer {entry['source']['object']}")
    return name, h.lr, h.weight_decay, h.steps, hyper


@adapter("optimiser")
def optimiser(entry):
    names = [name.removeprefix("param_") for name in entry["inputs"] if name.startswith("param_")]
    arrays(entry, *(f"{kind}_{name}" for kind in ("param", "grads") for name in names))
    vectors = [re.escape(n) for n in names if len(entry["inputs"][f"param_{n}"]["shape"]) == 1]
    name, lr, weight_decay, steps, hyper = optimizer_settings(entry, f"^({'|'.join(vectors)})$" if vectors else None)
    s = {"lr": jnp.float32(lr), "weight_decay": jnp.float32(weight_decay)}

    def function(**given):
        params = {n: given[f"param_{n}"] for n in names}
        tx = optim.make(name, params=params, **hyper)
        state, history = tx.init(params), []
        for step in range(steps):
            grads = {n: given[f"grads_{n}"][step] for n in names}
            updates, state = tx.update(grads, state, params, s=s, step=jnp.int32(step))
            params = optax.apply_updates(params, updates)
            history.append(params)
        return {f"params_{n}": jnp.stack([p[n] for p in history]) for n in names}

    return function


@adapter("layer_decay", eager=True)
def layer_decay(entry):
    h = settings(entry["hyper_parameters"], "depth", "layer_decay", "weight_decay")
    arrays(entry)
    if not entry["source"]["object"].endswith("param_groups_lrd"):  # the settings do not tell the two rules apart
        raise NotCovered("not the rule of MAE: timm scales the final norm like the last block")

    def ours(name):
        """Their name -> ours, and the index of its layer in the stack (None outside of the blocks)."""
        path = re.sub(r"^blocks\.(\d+)\.", "blocks.", name).split(".")
        path[-1] = {"weight": "scale" if path[-2:-1] and "norm" in path[-2] else "kernel"}.get(path[-1], path[-1])
        layer = re.match(r"blocks\.(\d+)\.", name)
        return "/".join(path), layer and int(layer[1])

    def function():
        named = [ours(name) for name in entry["parameter_names"]]
        params = {name: np.zeros((h.depth, 2) if layer is not None else (2,), np.float32) for name, layer in named}
        scales, rules = optim.layer_scales(params, h.layer_decay), optim.rules(params)
        return {
            "lr_scale": np.array([np.ravel(scales[name])[layer or 0] for name, layer in named]),
            "weight_decay": h.weight_decay * np.array([rules[name].weight_decay for name, _ in named]),
        }

    return function


# ----------------------------------------------------------------------------------------------------------- evaluators
@adapter("knn", eager=True)
def knn(entry):
    from ssljax.evals.knn import knn_predict

    h = settings(entry["hyper_parameters"], "k", "temperature", "classes")
    arrays(entry, "train_features", "train_labels", "test_features", "test_labels")

    def function(train_features, train_labels, test_features, test_labels):
        scores = knn_predict(train_features, train_labels, test_features, **h._asdict())
        order = np.argsort(-np.asarray(scores), axis=1, kind="stable")
        hits = order == np.asarray(test_labels)[:, None]
        return {
            "predicted": order[:, 0],
            "top1": 100 * hits[:, :1].any(1).mean(),
            "top5": 100 * hits[:, :5].any(1).mean(),
        }

    return function


@adapter("rankme", eager=True)
def rankme(entry):
    from ssljax.evals.rankme import rankme as score

    h = settings(entry["hyper_parameters"], "eps")
    arrays(entry, "embeddings")
    return lambda embeddings: {f"rankme_eps{eps:.0e}".replace("e-0", "e"): score(embeddings, eps) for eps in h.eps}


@adapter("zero_shot", eager=True)
def zero_shot(entry):
    from ssljax.evals.zeroshot import zero_shot_classifier

    h = settings(entry["hyper_parameters"], "logit_scale", "classes", "templates")
    arrays(entry, "template_embeddings", "image_features")
    if entry["inputs"]["template_embeddings"]["shape"][:2] != [h.classes, h.templates]:
        raise NotCovered("template_embeddings are not (classes, templates, dim)")

    def function(template_embeddings, image_features):
        classifier = zero_shot_classifier(template_embeddings)
        logits = h.logit_scale * image_features @ classifier
        return {"classifier": classifier, "logits": logits, "predicted": logits.argmax(1)}

    return function


@adapter("retrieval", eager=True)
def retrieval(entry):
    from ssljax.evals.retrieval import ranks

    h = settings(entry["hyper_parameters"], "logit_scale")
    arrays(entry, "image_features", "text_features")
    if h.logit_scale <= 0:
        raise NotCovered("ranks by a logit scale that is not positive")

    def function(image_features, text_features):
        out = {}
        for name, a, b in (
            ("image_to_text", image_features, text_features),
            ("text_to_image", text_features, image_features),
        ):
            r = np.asarray(ranks(a, b), np.float64)
            out |= {f"{name}_mean_rank": r.mean() + 1, f"{name}_median_rank": np.floor(np.median(r)) + 1}
            out |= {f"{name}_R_at_{k}": np.mean(r < k) for k in (1, 5, 10)}
        return out

    return function


# ----------------------------------------------------------------------------------------------------------- the runner
def sort_out():
    """-> {id: (entry, function)} of the covered entries, [(family, reason)] of the others."""
    covered, others = {}, []
    for entry in json.loads(INDEX.read_text())["entries"]:
        try:
            if not (INDEX.parent / entry["file"]).exists():
                raise NotCovered("file absent")
            if entry["category"] == "model":
                raise NotCovered("model")
            if entry["family"] not in ADAPTERS:
                raise NotCovered("no adapter")
            covered[entry["id"]] = entry, ADAPTERS[entry["family"]](entry)
        except NotCovered as reason:
            others.append((entry["family"], str(reason)))
    return covered, others


COVERED, OTHERS = sort_out()


def compare(name, got, expected, rtol, atol):
    """max|got - expected| <= rtol * max|expected| + atol, of the array as a whole; integers and booleans exactly."""
    got = np.asarray(got)
    assert got.shape == expected.shape, f"{name}: shape {got.shape}, expected {expected.shape}"
    if expected.dtype.kind in "biu":
        np.testing.assert_array_equal(got, expected, err_msg=name)
    elif expected.size:
        error = np.max(np.abs(got.astype(np.float64) - expected))
        bound = rtol * np.max(np.abs(expected)) + atol
        assert error <= bound, f"{name}: off by {error:.3g}, at most {bound:.3g} allowed"


@pytest.mark.parametrize("entry_id", COVERED)
def test_golden(entry_id):
    entry, function = COVERED[entry_id]
    tolerance = entry["tolerance"]
    with np.load(INDEX.parent / entry["file"]) as file, jax.default_matmul_precision("highest"):
        inputs = {name: jnp.asarray(file[f"in_{name}"]) for name in entry["inputs"]}
        chosen = {name: inputs[name] for name in entry.get("gradients") or ()}

        def value_and_gradients(inputs, chosen):
            gradient = jax.grad(lambda x: function(**{**inputs, **x})[entry["gradients_of"]])
            return function(**inputs), gradient(chosen) if chosen else {}

        run = value_and_gradients if entry["family"] in EAGER else jax.jit(value_and_gradients)
        outputs, gradients = run(inputs, chosen)
        assert set(outputs) == set(entry["outputs"]) - NOT_COMPARED.get(entry["family"], set())
        for name, value in outputs.items():
            compare(name, value, file[f"out_{name}"], tolerance["value_rtol"], tolerance["atol"])
        for name, value in gradients.items():
            compare(f"gradient of {name}", value, file[f"grad_{name}"], tolerance["grad_rtol"], tolerance["atol"])


def test_summary(capsys):
    """Prints what is covered; fails if the default folder lost some."""
    counts = collections.Counter(family for family, _ in OTHERS)
    reasons = collections.Counter(reason for _, reason in OTHERS)
    partly = sorted({e["family"] for e, _ in COVERED.values()} & set(NOT_COMPARED))
    with capsys.disabled():
        print(f"\ngolden: {len(COVERED)} covered of {len(COVERED) + len(OTHERS)}")
        print("  not covered:", ", ".join(f"{family} ({n})" for family, n in sorted(counts.items())) or "none")
        print("  because:", ", ".join(f"{reason} ({n})" for reason, n in reasons.most_common()) or "-")
        print("  not compared:", ", ".join(f"{f}: {', '.join(sorted(NOT_COMPARED[f]))}" for f in partly) or "none")
    assert len(COVERED) >= (AT_LEAST if "SSLJAX_GOLDEN" not in os.environ else 1)
