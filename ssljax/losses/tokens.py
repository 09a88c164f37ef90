"""Late interaction: pictures and texts compared patch by word, on any mesh, a block of pairs at a time."""

import functools

import jax
import jax.numpy as jnp

from ssljax.losses import pairs, streaming
from ssljax.losses.pairs import check_impl, dot, lse, slope_dot, total

ASKED = (lse("all"), total("same"))  # of the similarities that images have to texts, and of those that texts have to images


def filip(patches, words, valid, logit_scale, *, impl="auto"):
    """CLIP's cross-entropy over token-wise similarities (FILIP, Yao et al. 2021, equations 3 to 5).

    image to text: s_ij = mean over patches n of max over words t of x_in . y_jt;  text to image: mean over words of max over patches

    patches: (B, N, D), words: (B, T, D), of unit norm; bfloat16 is multiplied as such and summed in float32. valid: bool (B, T), words
    that are no padding. logit_scale: a positive scalar. impl: as for the other contrastive losses (`contrastive`); all but "dense" hold
    no more than a block's similarities of patches and words, and compute 4 M of the M = 2 B^2 N T D FLOPs that these take, with the
    gradients. -> float32 scalar. Raises UserError where the devices of the mesh do not divide the batch.
    """
    check_impl(impl)
    valid = valid.astype(bool)
    if impl == "dense":
        to_text, to_image = _compared(_products(patches, words), valid)  # (B, B), images down
        right = lambda s: jnp.mean(jax.nn.logsumexp(logit_scale * s, axis=1) - logit_scale * jnp.diag(s))  # noqa: E731
        return (right(to_text) + right(to_image.T)) / 2
    layout = streaming.layout_of(patches, words)
    streaming.check_divides(layout, **{"a batch": len(patches)})
    vectors = max(patches.shape[1], words.shape[1]) * patches.shape[2]
    _, schedule = pairs.choose(impl, len(patches), len(words), vectors, patches.dtype, layout, half=False)
    plan = pairs.Plan(ASKED, ASKED, keep=False, schedule=schedule, half=False)
    sides = _statistics(plan, patches, words, valid, jnp.asarray(logit_scale, jnp.float32))
    return sum(jnp.mean(every.over(own)) for every, own in sides) / 2


def _products(x, y):
    """x (b, N, D), y (c, T, D) -> x_in . y_jt, (b, N, c, T) float32."""
    return dot(_rows(x), _rows(y)).reshape(*x.shape[:2], *y.shape[:2])


def _rows(z):
    """Every vector of all sets: (b, N, D) -> (b N, D)."""
    return z.reshape(-1, z.shape[-1])


def _compared(products, valid):
    """(b, N, c, T), valid (c, T) -> how like its words an image finds a text, and its patches a text an image: both (b, c)."""
    best_word = jnp.where(valid, products, -jnp.inf).max(3)  # (b, N, c)
    best_patch = jnp.where(valid, products.max(1), 0.0)  # (b, c, T)
    return best_word.mean(1), best_patch.sum(2) / jnp.maximum(valid.sum(1), 1)


def _slopes(products, valid, to_text, to_image):
    """The slope in every product (b, N, c, T) by those in what `_compared` makes of them, both (b, c): a patch has chosen one word, a
    word one patch, the first of equals."""
    word = jnp.where(valid, products, -jnp.inf).argmax(3)[..., None] == jnp.arange(products.shape[3])
    patch = products.argmax(1)[:, None] == jnp.arange(products.shape[1])[:, None, None]
    by_word = to_image / jnp.maximum(valid.sum(1), 1)  # (b, c)
    of_words = jnp.where(patch & valid, by_word[:, None, :, None], 0.0)
    return jnp.where(word, to_text[:, None, :, None] / products.shape[1], 0.0) + of_words


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _statistics(plan, patches, words, valid, scale):
    return _forward(plan, patches, words, valid, scale)[0]


def _sides(patches, words, valid):
    """What the blocks see of images and of texts."""
    ids = jnp.arange(len(patches), dtype=jnp.int32)
    return {"z": patches, "id": ids}, {"z": words, "id": ids, "valid": valid}


def _forward(plan, patches, words, valid, scale):
    def block(shared, a, b, row, column, fresh, kept):
        to_text, to_image = _compared(_products(a["z"], b["z"]), b["valid"])
        row = pairs.update(plan.rows, row, to_text, shared["scale"], a, b, fresh, 1)
        return row, pairs.update(plan.columns, column, to_image, shared["scale"], a, b, fresh, 0), None

    rows, columns, _ = streaming.sweep(
        block,
        {"scale": scale},
        *_sides(patches, words, valid),
        plan.specs(plan.rows),
        plan.specs(plan.columns),
        combine=lambda shared, p, q: plan.combine(p, q, shared["scale"]),
        schedule=plan.schedule,
    )
    out = pairs.finish(plan.rows, rows, scale), pairs.finish(plan.columns, columns, scale)
    return out, (patches, words, valid, scale, rows, columns)


def _backward(plan, residuals, slopes):
    patches, words, valid, scale, *states = residuals
    asked = plan.rows, plan.columns
    weights = [{"weights": pairs.weights(*side, scale)} for side in zip(asked, states, slopes, strict=True)]

    def block(shared, a, b, row, column, fresh, kept):
        products = _products(a["z"], b["z"])
        sides = zip((a, b), asked, _compared(products, b["valid"]), (1, 0), strict=True)
        slopes = [
            sum(stat.gradient(pairs.of(side["weights"], i), u, shared["scale"], a, b, fresh, axis) for i, stat in enumerate(stats))
            for side, stats, u, axis in sides
        ]
        g = _slopes(products, b["valid"], *slopes).reshape(len(_rows(a["z"])), -1)  # patches down
        row = {"z": row["z"] + slope_dot(g, _rows(b["z"]), (1, 0)).reshape(row["z"].shape)}
        column = {"z": column["z"] + slope_dot(g, _rows(a["z"]), (0, 0)).reshape(column["z"].shape)}
        return row, column, None

    rows, columns, _ = streaming.sweep(
        block,
        {"scale": scale},
        *(side | own for side, own in zip(_sides(patches, words, valid), weights, strict=True)),
        {"z": (0.0, patches.shape[1:])},
        {"z": (0.0, words.shape[1:])},
        schedule=plan.schedule,
    )
    # Similarities grow as either side does, so that the slope in the scale, the sum of slope times similarity, is that of x . dx.
    slope = jnp.sum(patches.astype(jnp.float32) * rows["z"])
    return (scale * rows["z"]).astype(patches.dtype), (scale * columns["z"]).astype(words.dtype), None, slope


_statistics.defvjp(_forward, _backward)
