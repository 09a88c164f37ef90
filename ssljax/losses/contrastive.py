"""Softmax contrastive losses.

No function here normalises its inputs: the caller does (`normalise`) where similarities should be cosines. Arrays are
global and of any float dtype: float32 is multiplied in full precision, bfloat16 summed in float32. Losses are float32, and
the mean over the batch. Gradients flow into every array given, temperatures and scales included: a method that wants
constant keys or targets stops them itself, which saves their part of the work.

Every loss takes `impl`:
    "dense"   the definition, with the whole matrix of logits in memory
    "stream"  never more of it than a block (`pairs`, `streaming`): on any mesh, O(B D / devices) memory
    "grid"    the same on a two-dimensional grid of devices: less traffic, more memory
    "auto"    streams, but keeps the logits for the gradient where a device's share of them is at most 64 MiB, or on CPUs
              all of them are at most 1 GiB
and raises UserError for another word, and where the devices of the mesh do not divide the batch.
"""

import jax
import jax.numpy as jnp

from ssljax.errors import UserError
from ssljax.losses import streaming
from ssljax.losses.pairs import check_impl, count, dot, expected, lse, pair_sum, statistics, total


def normalise(x, eps=1e-12):
    """x (..., D) -> x / max(|x|, eps), float32, unit L2 norm along the last axis; zero stays zero."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), eps**2))


def similarities(x, y):
    """x (M, D), y (N, D) -> dot products (M, N) float32: in full precision for float32, bfloat16 summed in float32."""
    return dot(x, y)


def _at(mask, logits):
    """The one logit of each row where mask (M, N) is true: a sum that stays sharded by rows, where a gather would not."""
    return jnp.sum(jnp.where(mask, logits, 0.0), axis=1)


def clip_softmax(x, y, logit_scale, bias=0.0, *, impl="auto"):
    """Symmetric InfoNCE of image-text pairs (CLIP, Radford et al. 2021, Figure 3).

    logits = logit_scale * x @ y.T + bias                        # (B, B)
    loss = (CE(rows, arange(B)) + CE(columns, arange(B))) / 2

    x, y: (B, D), row i of one belongs to row i of the other. logit_scale: the multiplier itself, not its logarithm.
    bias: added to every logit; the softmax does not see it. -> float32 scalar.
    """
    check_impl(impl)
    if impl == "dense":
        logits = logit_scale * similarities(x, y) + bias  # (B, B)
        rows, columns = jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)
        return jnp.mean((rows + columns) / 2 - _at(jnp.eye(len(x), dtype=bool), logits))
    (rows, positives), (columns,) = statistics(
        x, y, logit_scale, rows=(lse("all"), total("same")), columns=(lse("all"),), impl=impl
    )  # fmt: skip
    return jnp.mean((rows.over(positives) + columns.over(positives)) / 2)


def unicl(x, y, labels, logit_scale, *, impl="auto"):
    """CLIP with several positives: all images and texts of one label belong together (UniCL, Yang et al. 2022, equations 1 to 4).

    target_ij = [labels_i == labels_j] / their number in row i;  loss = (CE(logits, target) + CE(logits.T, target)) / 2

    x, y: (B, D). labels: int (B,); pairs with no label of their own get one each. -> float32 scalar. Equal to CLIP where all differ.
    """
    check_impl(impl)
    if impl == "dense":
        logits = logit_scale * similarities(x, y)
        targets = (labels[:, None] == labels[None, :]).astype(jnp.float32)
        targets = targets / targets.sum(1, keepdims=True)
        return -jnp.mean(jnp.sum(targets * (jax.nn.log_softmax(logits, 1) + jax.nn.log_softmax(logits.T, 1)), axis=1)) / 2
    asked = (lse("all"), total("matches"), count("matches"))
    rows, columns = statistics(x, y, logit_scale, rows=asked, columns=asked, labels=labels, impl=impl)
    return jnp.mean(sum(every.over(sums / counts) for every, sums, counts in (rows, columns))) / 2


def distill_clip(x, y, logit_scale, teacher_x, teacher_y, teacher_logit_scale, *, impl="auto"):
    """A student's similarities learn a teacher's (OpenCLIP's distillation; interactive learning of TinyCLIP, Wu et al. 2023).

    teacher = teacher_logit_scale * teacher_x @ teacher_y.T;  student = logit_scale * x @ y.T       # (B, B)
    loss = (CE(student, softmax(teacher)) + CE(student.T, softmax(teacher.T))) / 2, cross entropy with soft targets

    x, y: (B, D). teacher_x, teacher_y: (B, E); stop their gradient, unless the teacher learns too. -> float32 scalar.
    """
    check_impl(impl)
    teacher = (teacher_logit_scale * teacher_x.astype(jnp.float32), teacher_y.astype(jnp.float32))
    if impl == "dense":
        student, teacher = logit_scale * similarities(x, y), similarities(*teacher)
        entropies = [-jnp.sum(jax.nn.softmax(teacher, k) * jax.nn.log_softmax(student, k), axis=k) for k in (0, 1)]
        return jnp.mean(sum(entropies)) / 2
    asked = (lse("all"), expected())
    rows, columns = statistics(x, y, logit_scale, rows=asked, columns=asked, teacher=teacher, impl=impl)
    return jnp.mean(sum(every.over(mean) for every, mean in (rows, columns))) / 2


def info_nce(q, k, *, temperature, queue=None, own=None, impl="auto"):
    """One-directional InfoNCE, queries against keys (MoCo, He et al. 2020, eq. 1).

    without a queue: loss_i = -log( e(q_i, k_i) / sum_j e(q_i, k_j) ),  e(a, b) = exp(a . b / temperature)
    with a queue:    loss_i = -log( e(q_i, k_i) / (e(q_i, k_i) + sum_n e(q_i, queue_n)) )

    q, k: (B, D). queue: (K, D), one negative a row, any K. own: (B, S), beside a queue: logits of further negatives of each query alone
    (MoCHi's). -> float32 scalar.
    """
    check_impl(impl)
    if queue is None and impl == "dense":
        logits = similarities(q, k) / temperature  # (B, B)
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - _at(jnp.eye(len(q), dtype=bool), logits))
    if queue is None:
        (keys, positives), _ = statistics(q, k, 1 / temperature, rows=(lse("all"), total("same")), impl=impl)
        return jnp.mean(keys.over(positives))
    positives = rowwise(q, k) / temperature  # (B,)
    if impl == "dense":
        negatives = jax.nn.logsumexp(similarities(q, queue) / temperature, axis=1)  # (B,)
    else:
        (negatives,), _ = _against_queue(q, queue, temperature, impl)
        negatives = negatives.value
    if own is not None:
        negatives = jnp.logaddexp(negatives, jax.nn.logsumexp(own, axis=1))
    return jnp.mean(jax.nn.softplus(negatives - positives))


def rowwise(x, y):
    """x, y (..., D) -> dot products of their rows (...), float32; a sum, so in full precision."""
    return jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)


def mixed_info_nce(q, k, target, *, temperature, impl="auto"):
    """InfoNCE whose positive is any mixture of the keys, target = w @ k for weights w (B, K) that add up to 1 in every row (i-Mix, Lee et
    al. 2021, its N-pair form; InstDisc, Wu et al. 2018, eq. 2, where the positive is a row of the memory bank).

    loss_i = -sum_j w_ij log( e(q_i, k_j) / sum_n e(q_i, k_n) ) = log sum_n e(q_i, k_n) - q_i . target_i / temperature

    q, target: (B, D). k: (K, D), any K. -> float32 scalar.
    """
    check_impl(impl)
    if impl == "dense":
        every = jax.nn.logsumexp(similarities(q, k) / temperature, axis=1)
    else:
        (every,), _ = _against_queue(q, k, temperature, impl)
        every = every.value
    return jnp.mean(every - rowwise(q, target) / temperature)


def nce(positive, noise, log_mean):
    """Noise-contrastive estimation against uniform noise, for a softmax over more rows than a step can visit
    (Gutmann and Hyvarinen 2010; InstDisc, Wu et al. 2018, equations 4 to 7, per example).

    P(i | x) = exp(logit_i) / Z, Z = N exp(log_mean);  h = P / (P + M / N), the chance that a row is data and not one of M noises
    loss = mean over the batch of -log h(positive) - sum over the noise of log(1 - h(noise)); N cancels

    positive: (B,), logits. noise: (B, M), logits of rows drawn uniformly. log_mean: the logarithm of the mean of exp(logit) over all
    rows, estimated once and then constant (`log_mean_exp` of the first noise). -> float32 scalar.
    """
    shift = log_mean + jnp.log(noise.shape[1])
    return jnp.mean(jax.nn.softplus(shift - positive) + jnp.sum(jax.nn.softplus(noise - shift), axis=1))


def log_mean_exp(logits):
    """log mean exp of all logits, float32 scalar; constant."""
    return jax.lax.stop_gradient(jax.nn.logsumexp(logits) - jnp.log(logits.size))


def _against_queue(q, queue, temperature, impl):
    """Log-sum-exps over a queue that the devices need not divide: it is padded with rows that wear the queries' label."""
    layout = streaming.layout_of(q)
    padding = -len(queue) % layout.size if layout else 0
    if not padding:
        return statistics(q, queue, 1 / temperature, rows=(lse("all"),), impl=impl)
    labels = jnp.zeros(len(q), jnp.int32), (jnp.arange(len(queue) + padding) < len(queue)).astype(jnp.int32)
    queue = jnp.pad(queue, ((0, padding), (0, 0)))
    return statistics(q, queue, 1 / temperature, rows=(lse("negatives"),), labels=labels, impl=impl)


def nearest_neighbours(z, queue):
    """The rows of queue (K, D), as they are stored, that have the greatest cosine with each row of z (B, D) -> (B, D); constant."""
    z, queue = jax.lax.stop_gradient((z, queue))
    return queue[similarities(normalise(z), normalise(queue)).argmax(1)]


def hardest(q, queue, count):
    """int32 (B, count): the rows of queue (K, D) most similar to each row of q (B, D), the most similar first; constant."""
    q, queue = jax.lax.stop_gradient((q, queue))
    return jax.lax.top_k(similarities(q, queue), count)[1]


def nnclr(z, p, queue, *, temperature, impl="auto"):
    """InfoNCE with the nearest neighbour in a queue for the view itself (NNCLR, Dwibedi et al. 2021, eq. 3; one direction).

    loss = info_nce(nearest_neighbours(z, queue), p)

    z: (B, D), projections of one view. p: (B, D), predictions of the other. queue: (K, D). All normalised by the caller; z and the
    queue are constant. -> float32 scalar.
    """
    return info_nce(nearest_neighbours(z, queue), p, temperature=temperature, impl=impl)


def moco_v3(q0, q1, k0, k1, *, temperature, impl="auto"):
    """Two views, each the other's query and key (MoCo v3, Chen et al. 2021, Algorithm 1, ctr(q1, k2) + ctr(q2, k1)).

    loss = 2 * temperature * (info_nce(q0, k1) + info_nce(q1, k0))

    q0, q1, k0, k1: (B, D), normalised by the caller, the keys from the momentum encoder and constant. -> float32 scalar.
    """
    halves = info_nce(q0, k1, temperature=temperature, impl=impl), info_nce(q1, k0, temperature=temperature, impl=impl)
    return 2 * temperature * sum(halves)


def _image_of_row(z0, z1):
    """-> int (2B,): the image of each row of concat(z0, z1)."""
    return jnp.tile(jnp.arange(len(z0), dtype=jnp.int32), 2)


def nt_xent(z0, z1, *, temperature, impl="auto"):
    """Normalised temperature-scaled cross entropy (SimCLR, Chen et al. 2020, equation 1 and Algorithm 1).

    z = concat(z0, z1)
    loss_i = -log( e(z_i, z_i') / sum_{j != i} e(z_i, z_j) ), z_i' the other view; mean over all 2B anchors

    z0, z1: (B, D), normalised by the caller, row i of both from one image. -> float32 scalar.
    """
    return jnp.mean(_nt_xent_terms(z0, z1, temperature, impl))


def _nt_xent_terms(z0, z1, temperature, impl):
    """-> float32 (2B,), a term for each anchor, in no promised order."""
    check_impl(impl)
    if impl == "dense":
        z, image = jnp.concatenate([z0, z1]), _image_of_row(z0, z1)
        logits = similarities(z, z) / temperature  # (2B, 2B)
        itself = jnp.eye(len(z), dtype=bool)
        positives = _at((image[:, None] == image[None, :]) & ~itself, logits)  # (2B,)
        others = jnp.where(itself, -jnp.inf, logits)
        return jax.nn.logsumexp(others, axis=1) - positives
    asked, image = (lse("others"), total("positives")), jnp.arange(len(z0), dtype=jnp.int32)
    (others, positives), _ = statistics((z0, z1), None, 1 / temperature, rows=asked, labels=image, impl=impl)
    return others.over(positives)


def macl(z0, z1, *, temperature=0.1, alpha=0.5, alignment=0.0, impl="auto"):
    """NT-Xent at a temperature that follows the model, terms weighed by it (MACL, Huang et al. 2023).

    t = temperature * (1 + alpha * (mean z0 . z1 - alignment));  loss = mean of -log p_i / (1 - p_i + 1e-8), p_i as in NT-Xent at t

    z0, z1: (B, D), normalised by the caller, row i of both from one image. The temperature and the weights are constant. alignment:
    the paper's A_0. -> float32 scalar.
    """
    positives = jnp.sum(z0.astype(jnp.float32) * z1.astype(jnp.float32), axis=-1)
    t = jax.lax.stop_gradient(temperature * (1 + alpha * (jnp.mean(positives) - alignment)))
    terms = _nt_xent_terms(z0, z1, t, impl)
    # 1 - p, where p is near 1 as well
    return jnp.mean(terms / jax.lax.stop_gradient(1e-8 - jnp.expm1(-terms)))


def dcl(z0, z1, *, temperature, sigma=None, impl="auto"):
    """Decoupled contrastive loss: NT-Xent without the positive in the denominator (Yeh et al. 2022, equations 6 and 7).

    loss_i = -w_i z_i . z_i' / temperature + log sum_{j of other images} e(z_i, z_j);  mean over all 2B anchors
    w = 1, or with sigma (DCLW, von Mises-Fisher weights) 2 - B softmax over the batch of (z0_i . z1_i / sigma), constant

    z0, z1: (B, D), normalised by the caller, row i of both from one image. -> float32 scalar.
    """
    check_impl(impl)
    if impl == "dense":
        z, image = jnp.concatenate([z0, z1]), _image_of_row(z0, z1)
        logits = similarities(z, z) / temperature
        same = image[:, None] == image[None, :]
        positives = _at(same & ~jnp.eye(len(z), dtype=bool), logits)
        negatives = jax.nn.logsumexp(jnp.where(same, -jnp.inf, logits), axis=1)
        return jnp.mean(negatives - _von_mises_fisher(positives * temperature, sigma) * positives)
    asked, image = (lse("negatives"), total("positives")), jnp.arange(len(z0), dtype=jnp.int32)
    (negatives, positives), _ = statistics((z0, z1), None, 1 / temperature, rows=asked, labels=image, impl=impl)
    return jnp.mean(negatives.over(_von_mises_fisher(positives, sigma) * positives))


def _von_mises_fisher(similarity, sigma):
    """similarity (2B,) of every anchor and its positive, twice each -> weights (2B,)."""
    if sigma is None:
        return 1.0
    return jax.lax.stop_gradient(2.0 - len(similarity) * jax.nn.softmax(similarity / sigma))


def hard_negative_nce(z0, z1, *, temperature, beta, prior, impl="auto"):
    """NT-Xent whose negatives weigh more the nearer they are, less what among them must be positives (HCL, Robinson et al. 2021,
    section 4). beta=0: the debiased loss of Chuang et al. 2020; prior=0 as well: NT-Xent.

    M_i = sum_n e_in^(1 + beta) / mean_n e_in^beta over the N = 2B - 2 rows n of other images, e_in = exp(z_i . z_n / temperature)
    G_i = max( (M_i - prior N e_i+) / (1 - prior), N exp(-1 / temperature) );  loss_i = -log( e_i+ / (e_i+ + G_i) )

    z0, z1: (B, D), normalised by the caller, row i of both from one image. beta: a number, not traced. prior: the paper's tau+, the chance
    that another image is of the anchor's class, in [0, 1). -> float32 scalar, the mean over all 2B anchors.
    """
    check_impl(impl)
    count = 2 * len(z0) - 2
    if impl == "dense":
        z, image = jnp.concatenate([z0, z1]), _image_of_row(z0, z1)
        logits = similarities(z, z) / temperature
        same = image[:, None] == image[None, :]
        positives = _at(same & ~jnp.eye(len(z), dtype=bool), logits)
        hard, weights = (jax.nn.logsumexp(jnp.where(same, -jnp.inf, power * logits), axis=1) for power in (1 + beta, beta))
    else:
        asked, image = (lse("negatives"), total("positives")), jnp.arange(len(z0), dtype=jnp.int32)
        (hard, positives), _ = statistics((z0, z1), None, (1 + beta) / temperature, rows=asked, labels=image, impl=impl)
        hard, positives, weights = hard.value, positives / temperature, jnp.log(count)
        if beta:
            (weights,), _ = statistics((z0, z1), None, beta / temperature, rows=asked[:1], labels=image, impl=impl)
            weights = weights.value
    # Relative to the positive, in logarithms: exp(2 / temperature) need not be a float32.
    ahead = hard - weights + jnp.log(count) - positives
    lowest = jnp.log(count) - 1 / temperature - positives
    rest = 1 - prior * count * jnp.exp(jnp.minimum(-ahead, 80.0))
    ahead = jnp.where(rest > 0, ahead + jnp.log(jnp.where(rest > 0, rest, 1.0) / (1 - prior)), -jnp.inf)
    return jnp.mean(jax.nn.softplus(jnp.maximum(ahead, lowest)))


def _by_label(z, labels, temperature, anchors=None):
    """-> logits (A, N), masks (A, N) of the positives and of all but oneself; the first A rows are the anchors."""
    anchors = z.shape[0] if anchors is None else anchors
    logits = similarities(z[:anchors], z) / temperature
    others = ~jnp.eye(anchors, z.shape[0], dtype=bool)
    return logits, (labels[:anchors, None] == labels[None, :]) & others, others


def masked_logsumexp(logits, mask):
    """-> log sum exp over the mask of every row, and which rows have any; the others get 0 and a zero gradient."""
    some = mask.any(axis=1)
    # A row of nothing but -inf would have nan for a gradient.
    masked = jnp.where(mask | ~some[:, None], logits, -jnp.inf)
    return jnp.where(some, jax.nn.logsumexp(masked, axis=1), 0.0), some


def supcon(z, labels, *, temperature, anchors=None, impl="auto"):
    """Supervised contrastive loss, positives averaged outside the logarithm (Khosla et al. 2020, equation 2, L_out).

    loss_i = -mean over positives p of i of log( e(z_i, z_p) / sum_{a != i} e(z_i, z_a) )

    z: (N, D), views stacked along the rows. labels: int (N,); rows of one label are positives of each other.
    The mean runs over the anchors that have a positive. anchors: only the first so many rows are anchors, while all
    rows are contrasted (default: all). The paper's code multiplies this by temperature / 0.07. -> float32 scalar.
    """
    check_impl(impl)
    if impl != "dense":
        asked = (lse("others"), total("positives"), count("positives"))
        x, y, pair = (z, None, labels) if anchors is None else (z[:anchors], z, (labels[:anchors], labels))
        (others, sums, counts), _ = statistics(x, y, 1 / temperature, rows=asked, labels=pair, impl=impl)
        losses = jnp.where(counts > 0, others.over(sums / jnp.maximum(counts, 1)), 0.0)
        return jnp.sum(losses) / jnp.maximum(jnp.sum(counts > 0), 1)
    logits, positives, others = _by_label(z, labels, temperature, anchors)
    log_p = logits - masked_logsumexp(logits, others)[0][:, None]  # (A, N)
    counts = jnp.sum(positives, axis=1)  # (A,)
    losses = -jnp.sum(jnp.where(positives, log_p, 0.0), axis=1) / jnp.maximum(counts, 1)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(counts > 0), 1)


def multi_positive(z, labels, *, temperature, impl="auto"):
    """NT-Xent with several positives, summed inside the logarithm (Khosla et al. 2020, equation 3, L_in).

    loss_i = -log( sum_{p positive of i} e(z_i, z_p) / sum_{a != i} e(z_i, z_a) )

    z: (N, D). labels: int (N,). The mean runs over the anchors that have a positive. -> float32 scalar.
    """
    check_impl(impl)
    if impl != "dense":
        asked = (lse("others"), lse("positives"), count("positives"))
        (others, positives, counts), _ = statistics(z, None, 1 / temperature, rows=asked, labels=labels, impl=impl)
        losses = others.over(positives.max) - positives.log_sum
        return jnp.sum(jnp.where(counts > 0, losses, 0.0)) / jnp.maximum(jnp.sum(counts > 0), 1)
    logits, positives, others = _by_label(z, labels, temperature)
    numerator, some = masked_logsumexp(logits, positives)
    denominator, _ = masked_logsumexp(logits, others)
    return jnp.sum(jnp.where(some, denominator - numerator, 0.0)) / jnp.maximum(jnp.sum(some), 1)


def pair_nt_xent(z, labels, *, temperature, impl="auto"):
    """NT-Xent over pairs named by labels: a pair's denominator leaves the anchor's other positives out.

    loss_ip = -log( e(z_i, z_p) / (e(z_i, z_p) + sum_{n of another label} e(z_i, z_n)) ), mean over ordered pairs (i, p)

    z: (N, D). labels: int (N,). -> float32 scalar, 0 where there is no pair.
    """
    check_impl(impl)
    if impl != "dense":
        asked = (lse("negatives"), count("negatives"), count("positives"))
        (negatives, others, pairs), _ = statistics(z, None, 1 / temperature, rows=asked, labels=labels, impl=impl)
        offset = jnp.where(others > 0, -negatives.value, 1e30)  # without negatives, a pair costs nothing
        losses = pair_sum(z, z, 1 / temperature, offset, positives="positives", count="positives", labels=labels, impl=impl)
        return losses / jnp.maximum(jnp.sum(pairs), 1)
    logits, positives, others = _by_label(z, labels, temperature)
    negatives, some = masked_logsumexp(logits, others & ~positives)
    losses = jnp.where(some[:, None], jax.nn.softplus(negatives[:, None] - logits), 0.0)
    return jnp.sum(jnp.where(positives, losses, 0.0)) / jnp.maximum(jnp.sum(positives), 1)


def detcon(predictions, targets, masks, *, temperature, impl="auto"):
    """Contrast of regions across views (DetCon, Henaff et al. 2021, section 3, both directions summed).

    For anchor r of one view: l = r . (all regions of the other view, and those of its own view that are not its own object) / temperature
    loss_r = mean over its positives of -log softmax(l), positives: regions of the same object in the other view; 0 where there are none
    loss = sum over both views of the mean over all B M anchors of loss_r / (anchors of r's object in its image and view)

    predictions, targets: two views each, (B, M, D), normalised by the caller; for DetCon_S they are the same. masks: two views, int
    (B, M), which object of the image a region was pooled from. -> float32 scalar.
    """
    check_impl(impl)
    batch, regions, _ = predictions[0].shape
    both = jnp.concatenate(masks, axis=1)  # (B, 2M)
    # A label of its own for each object of each image: where it is found first among the image's regions.
    first = jnp.argmax(both[:, :, None] == both[:, None, :], axis=2).astype(jnp.int32)
    labels = jnp.split(first + 2 * regions * jnp.arange(batch, dtype=jnp.int32)[:, None], 2, axis=1)
    labels = [label.reshape(-1) for label in labels]  # (B M,)
    areas = [jnp.sum(m[:, :, None] == m[:, None, :], axis=2).reshape(-1) for m in masks]
    rows = lambda x: x.reshape(batch * regions, -1)  # noqa: E731

    def direction(own, other):
        anchors, away, home = rows(predictions[own]), rows(targets[other]), rows(targets[own])
        if impl == "dense":
            logits, around = similarities(anchors, away) / temperature, similarities(anchors, home) / temperature
            positives = labels[own][:, None] == labels[other][None, :]
            around = jnp.where(labels[own][:, None] == labels[own][None, :], -jnp.inf, around)
            every, found = jax.nn.logsumexp(jnp.concatenate([logits, around], axis=1), axis=1), jnp.sum(positives, axis=1)
            terms = every - _at(positives, logits) / jnp.maximum(found, 1)
        else:
            asked, pair = (lse("all"), total("matches"), count("matches")), (labels[own], labels[other])
            (across, sums, found), _ = statistics(anchors, away, 1 / temperature, rows=asked, labels=pair, impl=impl)
            asked = (lse("negatives"), count("negatives"))
            (around, others), _ = statistics(anchors, home, 1 / temperature, rows=asked, labels=labels[own], impl=impl)
            more = jnp.where(others > 0, jax.nn.softplus(around.value - across.value), 0.0)
            terms = across.over(sums / jnp.maximum(found, 1)) + more
        return jnp.mean(jnp.where(found > 0, terms, 0.0) / areas[own])

    return direction(0, 1) + direction(1, 0)


def enqueue(queue, pointer, keys, *, overflow="wrap"):
    """Write a batch of keys over the oldest rows of a queue (MoCo, He et al. 2020, Algorithm 1).

    queue: (K, D). pointer: int scalar, the next row to write. keys: (B, D), B <= K. -> queue, pointer (int32).
    Where B does not divide K, overflow="wrap" goes on at row 0; "drop" leaves the rest of the batch out and returns
    to row 0. Raises UserError for a batch larger than the queue and for another `overflow`.
    """
    size, batch = queue.shape[0], keys.shape[0]
    if batch > size:
        raise UserError(f"a batch of {batch} keys does not fit into a queue of {size} rows; make the queue longer")
    if overflow not in ("wrap", "drop"):
        raise UserError(f"overflow={overflow!r}: expected 'wrap' or 'drop'")
    rows, end = pointer + jnp.arange(batch, dtype=jnp.int32), pointer + batch
    if overflow == "wrap":
        rows, end = rows % size, end % size
    else:
        end = jnp.where(end >= size, 0, end)
    return queue.at[rows].set(keys.astype(queue.dtype), mode="drop"), jnp.asarray(end, jnp.int32)
