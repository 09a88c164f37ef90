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
from tests import golden_models

pytestmark = pytest.mark.quick

INDEX = pathlib.Path(os.environ.get("SSLJAX_GOLDEN") or pathlib.Path(__file__).parent / "golden")
INDEX = INDEX if INDEX.suffix == ".json" else INDEX / "index.json"
AT_LEAST = 172  # covered entries of the default folder: to lose one is a failure, not a line in a list

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
    """Hyper-parameters as a namespace; NotCovered if one is missing or unknown. Adapters honour every one. "lambda" is lambda_."""
    values = {"lambda_" if name == "lambda" else name: value for name, value in values.items()}
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


@adapter("macl")
def macl(entry):
    h = settings(entry["hyper_parameters"], "temperature", "alpha", "A_0")
    arrays(entry, "z0", "z1")
    hyper = dict(temperature=h.temperature, alpha=h.alpha, alignment=h.A_0)
    return lambda z0, z1: {"loss": losses.macl(losses.normalise(z0), losses.normalise(z1), **hyper)}


@adapter("nnclr")
def nnclr(entry):
    h = settings(entry["hyper_parameters"], "temperature")
    arrays(entry, "z", "p", "bank")
    unit = losses.normalise
    return lambda z, p, bank: {
        "loss": losses.nnclr(unit(z), unit(p), unit(bank), temperature=h.temperature),
        "neighbours": losses.nearest_neighbours(z, bank),
    }


@adapter("detcon")
def detcon(entry):
    h = settings(entry["hyper_parameters"], "temperature")
    targets = ("t0", "t1") if has(entry, "t0") else ("p0", "p1")  # DetCon_B has a target branch, DetCon_S has not
    arrays(entry, *{"p0", "p1", *targets}, "mask0", "mask1")

    def function(mask0, mask1, **z):
        p, t = ([losses.normalise(z[name]) for name in names] for names in (("p0", "p1"), targets))
        return {"loss": losses.detcon(p, t, (mask0, mask1), temperature=h.temperature)}

    return function


@adapter("directclr")
def directclr(entry):
    h = settings(entry["hyper_parameters"], "loss_dim", "temperature")
    arrays(entry, "z0", "z1")
    return lambda z0, z1: {"loss": losses.direct_clr(z0, z1, dim=h.loss_dim, temperature=h.temperature)}


@adapter("align_uniform")
def align_uniform(entry):
    h = settings(entry["hyper_parameters"], "t", "lam", "alpha")
    arrays(entry, "z_a", "z_b")
    hyper = dict(power=h.alpha, t=h.t, weight=h.lam)
    return lambda z_a, z_b: {"loss": losses.align_uniform(losses.normalise(z_a), losses.normalise(z_b), **hyper)}


@adapter("ressl")
def ressl(entry):
    h = settings(entry["hyper_parameters"], "temperature_q", "temperature_k")
    arrays(entry, "q", "k", "queue")
    temperatures = dict(student_temperature=h.temperature_q, teacher_temperature=h.temperature_k)
    return lambda q, k, queue: {"loss": losses.ressl(q, k, queue, **temperatures)}


@adapter("coca")
def coca(entry):
    h = settings(entry["hyper_parameters"], "caption_loss_weight", "clip_loss_weight", "pad_id")
    arrays(entry, "image_features", "text_features", "logits", "labels", "logit_scale")

    def function(image_features, text_features, logits, labels, logit_scale):
        contrastive = h.clip_loss_weight * losses.clip_softmax(image_features, text_features, logit_scale)
        caption = h.caption_loss_weight * losses.caption(logits, labels, pad=h.pad_id)
        return {"contrastive": contrastive, "caption": caption, "loss": contrastive + caption}

    return function


# ------------------------------------------------------------------------------------------------------ metric learning
def by_label(entry, loss, **hyper):
    """A loss of embeddings and labels."""
    arrays(entry, "embeddings", "labels")
    return lambda embeddings, labels: {"loss": loss(embeddings, labels, **hyper)}


def by_label_of_unit_norm(entry, loss, **hyper):
    return by_label(entry, lambda z, labels: loss(losses.normalise(z), labels, **hyper))


@adapter("triplet")
def triplet(entry):
    if has(entry, "embeddings"):
        h = settings(entry["hyper_parameters"], "margin", swap=False)
        return by_label_of_unit_norm(entry, losses.triplet_by_label, **h._asdict())
    if has(entry, "anchor"):  # torch
        h = settings(entry["hyper_parameters"], "margin", "p", "swap", "eps")
        arrays(entry, "anchor", "positive", "negative")
        hyper = dict(margin=h.margin, norm=h.p, swap=h.swap, eps=h.eps)
        return lambda anchor, positive, negative: {"loss": losses.triplet(anchor, positive, negative, **hyper)}
    h = settings(entry["hyper_parameters"], "margin", "eps", norm_degree=2)  # optax
    arrays(entry, "anchors", "positives", "negatives")
    hyper = dict(margin=h.margin, norm=h.norm_degree, eps=h.eps, eps_on="sum")
    return lambda anchors, positives, negatives: {"loss": losses.triplet(anchors, positives, negatives, **hyper)}


@adapter("contrastive")
def contrastive(entry):
    if has(entry, "embeddings"):
        h = settings(entry["hyper_parameters"], "pos_margin", "neg_margin")
        margins = dict(positive_margin=h.pos_margin, negative_margin=h.neg_margin)
        return by_label_of_unit_norm(entry, losses.contrastive_by_label, **margins)
    h = settings(entry["hyper_parameters"], "margin", "distance")
    arrays(entry, "a", "b", "same")
    metrics = {"euclidean": "euclidean", "manhattan": "manhattan", "cosine_distance": "cosine"}
    if h.distance not in metrics:
        raise NotCovered(f"distance {h.distance}")
    return lambda a, b, same: {"loss": losses.contrastive_pairs(a, b, same, margin=h.margin, metric=metrics[h.distance])}


@adapter("lifted_structure")
def lifted_structure(entry):
    h = settings(entry["hyper_parameters"], "neg_margin", "pos_margin")
    # The settings do not tell the two apart.
    generalised = entry["source"]["object"].endswith("GeneralizedLiftedStructureLoss")
    loss = losses.generalised_lifted_structure if generalised else losses.lifted_structure
    return by_label_of_unit_norm(entry, loss, positive_margin=h.pos_margin, negative_margin=h.neg_margin)


@adapter("soft_nearest_neighbour")
def soft_nearest_neighbour(entry):
    h = settings(entry["hyper_parameters"], "temperature")
    return by_label(entry, losses.soft_nearest_neighbour, temperature=h.temperature)


@adapter("ncaloss")
def nca(entry):
    h = settings(entry["hyper_parameters"], "softmax_scale")
    return by_label_of_unit_norm(entry, losses.soft_nearest_neighbour, temperature=1 / h.softmax_scale)


@adapter("multisimilarityloss")
def multi_similarity(entry):
    h = settings(entry["hyper_parameters"], "alpha", "beta", "base")
    return by_label_of_unit_norm(entry, losses.multi_similarity, **h._asdict())


# --------------------------------------------------------------------------------------------------- redundancy reduction
@adapter("barlow_twins")
def barlow_twins(entry):
    h = settings(entry["hyper_parameters"], "lambda_", scale_loss=1.0)
    arrays(entry, "z_a", "z_b")
    return lambda z_a, z_b: {"loss": losses.barlow_twins(z_a, z_b, off_diagonal=h.lambda_, scale=h.scale_loss)}


@adapter("vicreg", "vicreg_paper")
def vicreg(entry):
    h = settings(entry["hyper_parameters"], "lambda_", "mu", "nu", eps=1e-4)
    arrays(entry, "z_a", "z_b")
    over_views = {"vicreg": "mean", "vicreg_paper": "sum"}[entry["family"]]
    weights = dict(invariance=h.lambda_, variance=h.mu, covariance=h.nu, eps=h.eps)

    def function(z_a, z_b):
        def loss(**only):  # the loss with some weights alone
            chosen = {**dict.fromkeys(("invariance", "variance", "covariance"), 0.0), "eps": h.eps, **only}
            return losses.vicreg(z_a, z_b, **chosen, variance_over_views=over_views)

        terms = {name: loss(**{name: 1.0}) for name in ("invariance", "variance", "covariance") if name in entry["outputs"]}
        return {"loss": loss(**weights), **terms}

    return function


@adapter("vicregl")
def vicregl(entry):
    h = settings(entry["hyper_parameters"], "num_matches", "alpha", "lambda_", "mu", "nu", eps=1e-4)
    views = range(sum(name.startswith("grid") for name in entry["inputs"]))
    arrays(entry, *(f"{kind}{v}" for kind in ("g", "l", "grid") for v in views))
    hyper = dict(matches=h.num_matches, alpha=h.alpha, invariance=h.lambda_, variance=h.mu, covariance=h.nu, eps=h.eps)
    return lambda **z: {"loss": losses.vicregl(*([z[f"{kind}{v}"] for v in views] for kind in ("g", "l", "grid")), **hyper)}


@adapter("tico")
def tico(entry):
    h = settings(entry["hyper_parameters"], "beta", "rho")
    arrays(entry, "z_a", "z_b", optional=("C",))

    def function(z_a, z_b, C=None):
        z_a, z_b = losses.normalise(z_a), losses.normalise(z_b)
        before = jnp.zeros((z_a.shape[1],) * 2) if C is None else C
        after = losses.update_covariance(before, z_a, h.beta)
        return {"loss": losses.tico(z_a, z_b, after, weight=h.rho), "C_after": after}

    return function


@adapter("mmcr")
def mmcr(entry):
    h = settings(entry["hyper_parameters"], "lambda_")
    arrays(entry, "online", "momentum")  # (B, k, D)

    def function(online, momentum):
        views = jnp.concatenate([online, momentum], axis=1).swapaxes(0, 1)
        return {"loss": losses.mmcr(views, compactness=h.lambda_)}

    return function


@adapter("frossl")
def frossl(entry):
    h = settings(entry["hyper_parameters"], "invariance_weight")
    arrays(entry, "views")
    return lambda views: {"loss": losses.frossl(views, invariance=h.invariance_weight)}


@adapter("emp_ssl")
def emp_ssl(entry):
    h = settings(entry["hyper_parameters"], "tcr_eps", "inv_coef")
    arrays(entry, "views")
    # lightly's sign of the coding rate
    return lambda views: {"loss": losses.emp_ssl(views, eps=h.tcr_eps, invariance=h.inv_coef, rate=-1.0)}


@adapter("lejepa")
def lejepa(entry):
    h = settings(entry["hyper_parameters"], "lambda_param", "knots", "t_max")
    arrays(entry, "local_proj", "global_proj", "directions")

    def function(local_proj, global_proj, directions):
        views = jnp.concatenate([global_proj, local_proj])
        hyper = dict(large=len(global_proj), knots=h.knots, t_max=h.t_max)
        return {
            "loss": losses.lejepa(views, directions, weight=h.lambda_param, **hyper),
            "sigreg": losses.sigreg(views, directions, knots=h.knots, t_max=h.t_max),
            "invariance": losses.lejepa(views, directions, weight=0.0, **hyper),
        }

    return function


# ------------------------------------------------------------------------------------------------------------ clustering
@adapter("sinkhorn")
def sinkhorn(entry):
    if has(entry, "scores"):
        h = settings(entry["hyper_parameters"], "iterations", "epsilon")
        arrays(entry, "scores")
        return lambda scores: {"codes": losses.sinkhorn(scores, **h._asdict())}
    h = settings(entry["hyper_parameters"], "sharpen_temperature", "iterations")
    arrays(entry, "probabilities")

    def function(probabilities):
        log_p = losses.sharpen(jnp.log(probabilities), h.sharpen_temperature)
        return {"sharpened": jnp.exp(log_p), "codes": losses.sinkhorn(log_p, epsilon=1.0, iterations=h.iterations)}

    return function


@adapter("swav")
def swav(entry):
    h = settings(entry["hyper_parameters"], "temperature", "sinkhorn_iterations", "epsilon")
    high, low, queues = (
        [f"{kind}{i}" for i in range(sum(name.startswith(kind) for name in entry["inputs"]))] for kind in ("high", "low", "queue")
    )  # fmt: skip
    arrays(entry, *high, *low, *queues)

    def function(**z):
        scores = jnp.stack([z[name] for name in (*high, *low)])
        queue = jnp.stack([z[name] for name in queues]) if queues else None
        hyper = dict(epsilon=h.epsilon, iterations=h.sinkhorn_iterations, queue=queue)
        codes = losses.swav_codes(scores[: len(high)], **hyper)
        return {
            "loss": losses.swav(scores, views=len(high), temperature=h.temperature, **hyper),
            **{f"codes{i}": code for i, code in enumerate(codes)},
        }

    return function


@adapter("deepclusterv2")
def deepclusterv2(entry):
    h = settings(entry["hyper_parameters"], "temperature")
    arrays(entry, "outputs", "assignments")
    return lambda outputs, assignments: {"loss": losses.deepcluster_v2(outputs, assignments, temperature=h.temperature)}


@adapter("msn")
def msn(entry):
    arrays(entry, "anchors", "targets", "prototypes")
    views = entry["inputs"]["anchors"]["shape"][0] // entry["inputs"]["targets"]["shape"][0]
    if "tau" in entry["hyper_parameters"]:  # the authors' code
        h = settings(entry["hyper_parameters"], "tau", "T", "label_smoothing", "use_sinkhorn", "num_views")
        if h.num_views != views:
            raise NotCovered(f"num_views {h.num_views}, but {views} anchors a target")
        hyper = dict(temperature=h.tau, sharpening=h.T, iterations=3 * h.use_sinkhorn, label_smoothing=h.label_smoothing)
        weight = 1.0
    else:  # lightly
        names = ("temperature", "sinkhorn_iterations", "regularization_weight", "target_sharpen_temperature")
        h = settings(entry["hyper_parameters"], *names)
        hyper = dict(temperature=h.temperature, sharpening=h.target_sharpen_temperature, iterations=h.sinkhorn_iterations)
        weight = h.regularization_weight

    def function(anchors, targets, prototypes):
        anchors, targets, prototypes = map(losses.normalise, (anchors, targets, prototypes))
        student = losses.similarities(anchors, prototypes).reshape(views, len(targets), -1)  # view-major
        teacher = losses.similarities(targets, prototypes)
        out = {"loss": losses.msn(student, teacher, **hyper, regularisation=weight)}
        if "cross_entropy" in entry["outputs"]:
            p = jax.nn.softmax(student / h.tau, axis=-1)
            log_p = jnp.log((1 - h.label_smoothing) * p + h.label_smoothing / p.shape[-1])
            out["cross_entropy"] = losses.msn(student, teacher, **hyper, regularisation=0.0)
            out["me_max"] = jnp.log(p.shape[-1]) - losses.entropy_of_mean(log_p)
            out["entropy"] = losses.entropy(log_p).mean()
        return out

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


@adapter("dinov2_cls")
def dinov2_cls(entry):
    h = settings(entry["hyper_parameters"], "student_temp", "teacher_temp", "center_momentum", "teacher", "n_iterations")
    arrays(entry, "student", "teacher", "center")
    if h.teacher not in ("center", "sinkhorn"):
        raise NotCovered(f"teacher {h.teacher}")

    def function(student, teacher, center):
        if h.teacher == "center":
            q = losses.centred(teacher, center[0], h.teacher_temp)
        else:
            q = losses.sinkhorn(teacher, epsilon=h.teacher_temp, iterations=h.n_iterations)
        targets = q.reshape(-1, *student.shape[1:])  # (T, B, K)
        mean = losses.across_crops(targets, student, temperature=h.student_temp, pairs="all")
        out = {"loss": len(student) * len(targets) * mean, "teacher_probabilities": q}
        if "center_after" in entry["outputs"]:
            out["center_after"] = losses.update_centre(center[0], teacher, h.center_momentum)[None]
        return out

    return function


@adapter("ibot_patch")
def ibot_patch(entry):
    h = settings(entry["hyper_parameters"], "student_temp", "teacher_temp", "center_momentum")
    arrays(entry, "student", "teacher", "mask", "center")

    def function(student, teacher, mask, center):
        targets = losses.centred(teacher, center[0, 0], h.teacher_temp)
        loss = losses.ibot(student, targets, mask, temperature=h.student_temp)
        center_after = losses.update_centre(center[0, 0], teacher, h.center_momentum)[None, None]
        return {"loss": loss, "loss_from_masked_tokens": loss, "center_after": center_after}

    return function


@adapter("ibot_full")
def ibot_full(entry):
    h = settings(
        entry["hyper_parameters"],
        *("student_temp", "teacher_temp_in_effect", "patch_teacher_temp_in_effect", "center_momentum", "center_momentum2"),
        *("lambda1", "lambda2"),
    )
    images = ("student_cls", "student_patch", "teacher_cls", "teacher_patch", "mask", "center", "center2")
    arrays(entry, *images, optional=("student_local_cls",))
    views, batch = entry["inputs"]["mask"]["shape"][:2]

    def function(student_cls, student_patch, teacher_cls, teacher_patch, mask, center, center2, student_local_cls=None):
        crops = student_cls if student_local_cls is None else jnp.concatenate([student_cls, student_local_cls])
        temperatures = dict(student_temperature=h.student_temp, teacher_temperature=h.teacher_temp_in_effect)
        split = lambda x: x.reshape(-1, batch, x.shape[-1])  # noqa: E731
        cls = losses.dino(split(crops), split(teacher_cls), center[0], **temperatures)
        targets = losses.centred(teacher_patch, center2[0, 0], h.patch_teacher_temp_in_effect)
        patch = losses.ibot(student_patch, targets, mask.reshape(views * batch, -1), temperature=h.student_temp)
        cls, patch = h.lambda1 * cls, h.lambda2 * patch
        return {
            "loss": cls + patch,
            "cls": cls,
            "patch": patch,
            "center_after": losses.update_centre(center[0], teacher_cls, h.center_momentum)[None],
            "center2_after": losses.update_centre(center2[0, 0], teacher_patch, h.center_momentum2)[None, None],
        }

    return function


@adapter("negative_cosine")
def negative_cosine(entry):
    settings(entry["hyper_parameters"])
    arrays(entry, "p0", "z1", "p1", "z0")
    return lambda p0, z1, p1, z0: {"loss": losses.simsiam(p0, p1, z0, z1), "one_side": losses.negative_cosine(p0, z1)}


@adapter("byol")
def byol(entry):
    settings(entry["hyper_parameters"])
    arrays(entry, "p1", "z2", "p2", "z1")
    return lambda p1, z2, p2, z1: {"loss": losses.byol(p1, p2, z1, z2), "one_side": 2 + 2 * losses.negative_cosine(p1, z2)}


@adapter("koleo")
def koleo(entry):
    h = settings(entry["hyper_parameters"], "eps")
    arrays(entry, "x")
    return lambda x: {"loss": losses.koleo(x, eps=h.eps)}


@adapter("simmim")
def simmim(entry):
    h = settings(entry["hyper_parameters"], "patch_size")
    arrays(entry, "images", "reconstruction", "mask")
    last = lambda x: x.transpose(0, 2, 3, 1)  # noqa: E731
    return lambda images, reconstruction, mask: {"loss": losses.simmim(last(reconstruction), last(images), mask, **h._asdict())}


@adapter("data2vec")
def data2vec(entry):
    ahead = dict(target_batch_norm="batch", target_instance_norm="instance", target_layer_norm_last="layer")
    after = dict(post_target_instance_norm="instance", post_target_layer_norm="layer")
    h = settings(entry["hyper_parameters"], "target_layers", "beta", *ahead, *after)._asdict()
    arrays(entry, "teacher_layers", "mask", "student")
    norms, norms_after = (tuple(norm for flag, norm in flags.items() if h[flag]) for flags in (ahead, after))

    def function(teacher_layers, mask, student):
        target = losses.data2vec_target(teacher_layers[jnp.array(h["target_layers"])], norms=norms, norms_after=norms_after)
        masked = jnp.nonzero(mask.reshape(-1), size=len(student))  # the student gives the masked tokens only
        flat = target.reshape(-1, target.shape[-1])
        prediction = jnp.zeros_like(flat).at[masked].set(student).reshape(target.shape)
        return {"loss": losses.data2vec(prediction, target, mask, beta=h["beta"]), "targets": flat[masked]}

    return function


@adapter("ijepa")
def ijepa(entry):
    h = settings(entry["hyper_parameters"], "n_context_masks", "n_target_masks")
    arrays(entry, "target_encoder_out", "masks_pred", "predictions")

    def function(target_encoder_out, masks_pred, predictions):
        targets = losses.ijepa_targets(target_encoder_out, masks_pred)  # (T, B, M, D)
        shape = (h.n_target_masks, h.n_context_masks, *targets.shape[1:])
        every = jnp.broadcast_to(targets[:, None], shape).reshape(predictions.shape)
        return {"loss": losses.ijepa(predictions.reshape(shape), targets), "targets": every}

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


def resize_rule(entry):
    """The rule of `positions.RESIZES`: the settings do not name it, the function called does."""
    called = entry["source"]["object"]
    if "dinov2" in called:
        offset, antialias = re.search(r"offset ([\d.]+), antialias (\w+)", entry["formula"]).groups()
        rules = {(0.0, "False"): "bicubic", (0.0, "True"): "bicubic_antialias", (0.1, "False"): "bicubic_dino"}
        return rules.get((float(offset), antialias))
    if "resample_abs_pos_embed" in called:
        kernel = re.search(r"interpolation='(\w+)'", called)
        kernel = kernel[1] if kernel else "bicubic"
        return kernel if "antialias=False" in called else f"{kernel}_antialias"
    names = {"interpolate_pos_encoding": "bicubic_dino", "interpolate_pos_embed": "bicubic", "resample_posemb": "linear_corners"}
    return names.get(called.split(":")[-1])


@adapter("position_resize")
def position_resize(entry):
    from ssljax.models import positions

    h = settings(entry["hyper_parameters"], "old_grid", "new_grid", "prefix_tokens", "prefix")
    arrays(entry, "table")
    rule = resize_rule(entry)
    if rule not in positions.RESIZES or h.prefix_tokens and "kept unchanged" not in h.prefix:
        raise NotCovered(f"resizing by {entry['source']['object']}, prefix {h.prefix}")
    source, target = ((grid, grid) if isinstance(grid, int) else tuple(grid) for grid in (h.old_grid, h.new_grid))

    def function(table):
        prefix, patches = table[:, : h.prefix_tokens], table[:, h.prefix_tokens :]
        return {"table": jnp.concatenate([prefix, positions.resize(patches, source, target, rule)], axis=1)}

    return function


@adapter("patch_embed_resize", eager=True)
def patch_embed_resize(entry):
    from ssljax.models.positions import resize_patches

    h = settings(entry["hyper_parameters"], "new_patch")
    arrays(entry, "weight")
    if not isinstance(h.new_patch, int) or len(set(entry["inputs"]["weight"]["shape"][2:])) > 1:
        raise NotCovered("patches that are not square")
    return lambda weight: {"weight": resize_patches(weight.transpose(2, 3, 1, 0), h.new_patch).transpose(3, 2, 0, 1)}


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
    # The settings do not tell the two rules apart.
    norm = {"param_groups_lrd": "head", "param_groups_layer_decay": "block"}.get(re.split(r"[.:]", entry["source"]["object"])[-1])
    if norm is None:
        raise NotCovered(f"the rule of {entry['source']['object']}")

    def ours(name):
        """Their name -> ours, and the index of its layer in the stack (None outside of the blocks)."""
        path = re.sub(r"^blocks\.(\d+)\.", "blocks.", name).split(".")
        path[-1] = {"weight": "scale" if path[-2:-1] and "norm" in path[-2] else "kernel"}.get(path[-1], path[-1])
        layer = re.match(r"blocks\.(\d+)\.", name)
        return "/".join(path), layer and int(layer[1])

    def function():
        named = [ours(name) for name in entry["parameter_names"]]
        params = {name: np.zeros((h.depth, 2) if layer is not None else (2,), np.float32) for name, layer in named}
        scales, rules = optim.layer_scales(params, h.layer_decay, norm=norm), optim.rules(params)
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


@adapter("lidar", eager=True)
def lidar(entry):
    from ssljax.evals.lidar import lidar as score

    h = settings(entry["hyper_parameters"], "groups", "per_group", "delta", "epsilon")
    arrays(entry, "embeddings")

    def function(embeddings):
        value = score(embeddings.reshape(h.groups, h.per_group, -1), delta=h.delta, eps=h.epsilon)
        return {"lidar": value, "entropy": np.log(value)}

    return function


@adapter("linear_cka", eager=True)
def linear_cka(entry):
    from ssljax.evals.cka import linear_cka as cka

    settings(entry["hyper_parameters"])
    arrays(entry, "x", "y", optional=("y_same_width",))

    def function(x, y, y_same_width=None):
        out = {"cka": cka(x, y)}
        if y_same_width is not None:
            out |= dict.fromkeys(("cka_same_width", "cka_same_width_reference"), cka(x, y_same_width))
        return out

    return function


@adapter("clustering", eager=True)
def clustering(entry):
    from ssljax.evals.cluster import agreement

    settings(entry["hyper_parameters"])
    arrays(entry, "labels", "clusters")
    return lambda labels, clusters: agreement(np.asarray(labels), np.asarray(clusters))


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
    """-> {id: (entry, function)} of the covered losses and utilities, {id: (entry, config, layout)} of the covered models, [(family,
    reason)] of the others."""
    covered, found, others = {}, {}, []
    for entry in json.loads(INDEX.read_text())["entries"]:
        try:
            if not (INDEX.parent / entry["file"]).exists():
                raise NotCovered("file absent")
            if entry["category"] == "model":
                found[entry["id"]] = entry, *golden_models.layout_of(entry, INDEX.parent)
                continue
            if entry["family"] not in ADAPTERS:
                raise NotCovered("no adapter")
            covered[entry["id"]] = entry, ADAPTERS[entry["family"]](entry)
        except (NotCovered, golden_models.NotCovered) as reason:
            others.append((entry["family"], str(reason)))
    return covered, found, others


COVERED, MODELS, OTHERS = sort_out()


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


@pytest.mark.parametrize("entry_id", MODELS)
@pytest.mark.thorough
def test_golden_model(entry_id):
    entry, config, layout = MODELS[entry_id]
    golden_models.check(entry, INDEX.parent, config, layout, compare)


def test_summary(record_property):
    """Says what is covered, in pytest's summary (conftest.py); fails if the default folder lost some."""
    counts = collections.Counter(family for family, _ in OTHERS)
    reasons = collections.Counter(reason for _, reason in OTHERS)
    partly = sorted({e["family"] for e, _ in COVERED.values()} & set(NOT_COMPARED))
    covered = len(COVERED) + len(MODELS)
    lines = (
        f"golden: {covered} covered of {covered + len(OTHERS)}",
        f"  not covered: {', '.join(f'{family} ({n})' for family, n in sorted(counts.items())) or 'none'}",
        f"  because: {', '.join(f'{reason} ({n})' for reason, n in reasons.most_common()) or '-'}",
        f"  not compared: {', '.join(f'{f}: ' + ', '.join(sorted(NOT_COMPARED[f])) for f in partly) or 'none'}",
    )
    record_property("golden", "\n".join(lines))
    assert covered >= (AT_LEAST if "SSLJAX_GOLDEN" not in os.environ else 1)
