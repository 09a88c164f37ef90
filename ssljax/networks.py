"""What methods are composed of: an encoder with heads in a row, run over views, and a teacher that follows its student.

Parameters and batch statistics are dicts by the names of the parts, {"encoder": ..., "projector": ..., "predictor": ...}, in `params` and
in `extra["stats"]`; a teacher's in `extra["teacher"]` and `extra["teacher_stats"]`.
"""

import functools

import jax
import jax.numpy as jnp

from ssljax import losses, models, trees
from ssljax.augment import masks as laws
from ssljax.errors import UserError


def init(parts, rng, views):
    """parts: {name: module}, each fed by the one before it. views (B, V, H, W, 3). -> params, statistics, both by name."""
    params, stats = {}, {}
    x = models.flat_views(views)
    for key, (name, module) in zip(jax.random.split(rng, len(parts)), parts.items(), strict=True):
        params[name], stats[name] = models.init(module, key, x, train=False)
        outputs, _ = models.apply(module, params[name], stats[name], x, train=False)
        x = outputs["pooled"] if isinstance(outputs, dict) else outputs
    return params, stats


def forward(parts, params, stats, views, *, rng=None, train=True, tokens=False, **kwargs):
    """One pass over views of one size. kwargs go to the first part. -> {name: outputs (B, V, ...)}, statistics.

    An encoder's outputs are a dict, whose "pooled" the next part takes; a head's are an array. tokens: whether a transformer's "tokens"
    and "patches" are wanted as well; a convolutional network's patches are always there."""
    batch, x, outputs, after = views.shape[0], models.flat_views(views), {}, {}
    keys = [None] * len(parts) if rng is None else jax.random.split(rng, len(parts))
    for key, (name, module) in zip(keys, parts.items(), strict=True):
        y, after[name] = models.apply(module, params[name], stats[name], x, train=train, rng=key, tokens=tokens, **kwargs)
        x, kwargs = (y["pooled"] if isinstance(y, dict) else y), {}
        outputs[name] = jax.tree.map(lambda a: a.reshape(batch, -1, *a.shape[1:]), y)
    return outputs, {**stats, **after}


def over_crops(parts, params, stats, groups, *, rng=None):
    """`forward` over groups of views, each of one size and so one pass: [(B, V, H, W, 3), (B, L, h, w, 3), ...].

    -> the last part's outputs of all (B, V + L + ..., D), statistics after the last pass."""
    last = list(parts)[-1]
    outputs = []
    keys = [None] * len(groups) if rng is None else jax.random.split(rng, len(groups))
    for key, views in zip(keys, groups, strict=True):
        out, stats = forward(parts, params, stats, views, rng=key)
        outputs.append(out[last]["pooled"] if isinstance(out[last], dict) else out[last])
    return jnp.concatenate(outputs, axis=1), stats


def views_of(batch):
    """The groups of views of a multi-crop batch, the large ones first."""
    return [batch[name] for name in ("views", "crops") if name in batch]


def teacher(params, stats, parts=None):
    """-> {"teacher": ..., "teacher_stats": ...} for `extra`: a copy of the student, bit for bit. parts: names to copy; default: all."""
    names = list(params) if parts is None else parts
    return {"teacher": {n: trees.copy(params[n]) for n in names}, "teacher_stats": {n: trees.copy(stats[n]) for n in names}}


def follow(extra, params, momentum):
    """`extra` with the teacher moved: momentum * teacher + (1 - momentum) * student."""
    return {**extra, "teacher": trees.ema(extra["teacher"], {name: params[name] for name in extra["teacher"]}, momentum)}


def unhurt(parts):
    """`parts` without stochastic depth, which a teacher does not have."""
    return {name: part.clone(drop_path=0.0) if getattr(part, "drop_path", 0) else part for name, part in parts.items()}


def taught(parts, extra, views, *, rng=None, tokens=False):
    """The teacher's `forward`, in training mode and constant. -> {name: outputs (B, V, ...)}, `extra` with its new statistics."""
    outputs, stats = forward(unhurt(parts), extra["teacher"], extra["teacher_stats"], views, rng=rng, tokens=tokens)
    return jax.lax.stop_gradient(outputs), {**extra, "teacher_stats": stats}


def masks(law, rng, images, patch_size, **settings):
    """One mask an image (B, H, W, 3), each by a key of its own: the dict of `augment.masks` with a leading axis B. law: a function there;
    settings: that function's."""
    grid = tuple(side // patch_size for side in images.shape[1:3])
    draw = getattr(laws, law)
    return jax.vmap(lambda key: draw(key, grid, **settings))(jax.random.split(rng, images.shape[0]))


def some_blocks(rng, images, patch_size, *, ratio, chance):
    """Block-wise masks of a share `chance` of the images (B, H, W, 3), each of a share of its patches that is drawn from `ratio` (iBOT).

    -> mask bool (B, N); ids int (B, M), M = the most patches that `ratio` lets a mask have, the masked ones in front."""
    grid = tuple(side // patch_size for side in images.shape[1:3])
    count = grid[0] * grid[1]
    r, least = jax.random.split(rng, 3), (min(grid) // 3) ** 2
    share = jax.random.uniform(r[0], images.shape[:1], minval=ratio[0], maxval=ratio[1])
    most = (share * count * jax.random.bernoulli(r[1], chance, images.shape[:1])).astype(jnp.int32)
    draw = jax.vmap(lambda key, most: laws.block_region(key, grid, most=most, least=least).reshape(-1))
    mask = draw(jax.random.split(r[2], len(images)), most)
    return mask, jnp.argsort(~mask, axis=1)[:, : max(int(ratio[1] * count), 1)]


def gather(x, ids):
    """Tokens (B, N, D) at ids int (B, n) -> (B, n, D)."""
    return jnp.take_along_axis(x, ids[..., None], axis=1)


def at_patches(head, params, stats, outputs, ids):
    """A head on the patches at ids int (B * V, M) of an encoder's outputs (B, V, ...). -> (B, V, M, K)."""
    patches = outputs["patches"]  # (B, V, N, D)
    x = jnp.take_along_axis(patches, ids.reshape(*patches.shape[:2], -1, 1), axis=2)
    return models.apply(head, params, stats, x, train=True)[0]


def directions(rng, rows, width):
    """Random vectors of unit norm (rows, width): what a queue or a memory bank holds before it has seen an example."""
    return losses.normalise(jax.random.normal(rng, (rows, width)))


def queue(rng, rows, width):
    """-> {"queue": (rows, width), "pointer": 0} for `extra`: random directions, each waiting for a key to take its place."""
    return {"queue": directions(rng, rows, width), "pointer": jnp.zeros((), jnp.int32)}


def enqueue(extra, keys):
    """`extra` with keys (B, D) in the place of its queue's oldest rows."""
    rows, pointer = losses.enqueue(extra["queue"], extra["pointer"], keys)
    return {**extra, "queue": rows, "pointer": pointer}


def staleness(extra, keys):
    """{"queue_drift": how far the mean of new keys (B, ..., D), of unit norm, lies from the mean of the queue's}.

    0 where both are draws of one distribution (but for chance, B**-0.5), 1 where what is in the queue has nothing to do with what would
    be put there now: keys of a teacher long past, or random directions that no key has replaced yet.
    """
    drift = jnp.linalg.norm(keys.mean(0) - extra["queue"].mean(0), axis=-1).mean()
    return {"queue_drift": jax.lax.stop_gradient(drift)}


def check_bank(examples, run):
    """Raises UserError where a memory bank has no row for every training example of a Run."""
    if run.examples > examples:
        raise UserError(f"config.method.examples={examples}: the memory bank needs a row for each of {run.examples} training examples")


def remember(bank, ids, rows, momentum):
    """A memory bank (N, D) of which rows `ids` int (B,) move: normalise(momentum * old + (1 - momentum) * rows), rows (B, D)."""
    return trees.Moved(bank, ids, losses.normalise(momentum * bank[ids] + (1 - momentum) * jax.lax.stop_gradient(rows)))


def masked_words(rng, ids, ratio, vocabulary):
    """BERT's masks (Devlin et al. 2018, section 3.1): ids int (B, T), 0 padding -> what is read int (B, T), what is predicted bool (B, T).

    Of `ratio` of the tokens, one of every text at least, 80 % are read as the last id, 10 % as any, 10 % as they are."""
    r = jax.random.split(rng, 3)
    draw = jnp.where(ids != 0, jax.random.uniform(r[0], ids.shape), 2.0)
    mask = ((draw < ratio) | (draw == draw.min(axis=1, keepdims=True))) & (ids != 0)
    how, other = jax.random.uniform(r[1], ids.shape), jax.random.randint(r[2], ids.shape, 1, vocabulary - 1)
    return jnp.where(mask & (how < 0.8), vocabulary - 1, jnp.where(mask & (how >= 0.9), other, ids)), mask


def starts(ids, start):
    """Texts shifted by one for predicting the next token: ids int (B, T) -> (B, T), the id `start` in front and the last one gone."""
    return jnp.concatenate([jnp.full_like(ids[:, :1], start), ids[:, :-1]], axis=1)


def started(ids, start):
    """Texts int (B, T) that start with the id `start`: as they are where they do, else shifted by one, the last id gone."""
    return jnp.where(ids[:, :1] == start, ids, starts(ids, start))


def partly_at_once(rng, ids, start, share):
    """CapPa's reading (Tschannen et al. 2023, section 3) of texts ids int (B, T), a share of them at once: `start` everywhere, seen by
    all; the others shifted by `start`, each place seeing those before. -> what is read int (B, T), which place sees which bool (B, T, T),
    which texts are read at once bool (B,)."""
    at_once = jax.random.uniform(rng, ids.shape[:1]) < share
    read = jnp.where(at_once[:, None], start, starts(ids, start))
    return read, jnp.tril(jnp.ones((ids.shape[1],) * 2, bool)) | at_once[:, None, None], at_once


def accuracy(logits, ids, mask):
    """Share of the tokens ids (B, T) where mask (B, T) that logits (B, T, V) have right."""
    return losses.masked_mean((logits.argmax(-1) == ids).astype(jnp.float32), mask)


def text_features(module, params, ids):
    """The mean of a text tower's tokens that are no padding, in evaluation mode: ids int (B, T) -> {"features": (B, D)}."""
    real = ids != 0
    outputs, _ = models.apply(module, params["text"], {}, ids, train=False, valid=real)
    return {"features": (outputs["tokens"] * real[..., None]).sum(1) / jnp.maximum(real.sum(1, keepdims=True), 1)}


def features(module, params, stats, images):
    """The pooled features of whole images (B, H, W, 3), in evaluation mode. -> {"features": (B, D)}."""
    outputs, _ = models.apply(module, params["encoder"], stats["encoder"], images, train=False, tokens=False)
    return {"features": outputs["pooled"]}


def reconstructions(images, pred, mask, patch_size, *, norm_pix_loss=False):
    """Pictures for the report, of masked modelling of pixels: images (B, H, W, 3), pred (B, N, p*p*3), mask (B, N), 1 = masked.

    norm_pix_loss: pred is of patches normalised each by itself, and gets back their statistics, which the model was not asked for."""
    patches, mask = losses.patchify(images, patch_size), mask[..., None]
    if norm_pix_loss:
        pred = pred * jnp.sqrt(patches.var(-1, keepdims=True, ddof=1) + 1e-6) + patches.mean(-1, keepdims=True)
    pieces = {"original": patches, "masked": patches * (1 - mask), "reconstruction": patches * (1 - mask) + pred * mask}
    grid = tuple(side // patch_size for side in images.shape[1:3])
    return {"reconstructions": {name: losses.unpatchify(x, patch_size, grid) for name, x in pieces.items()}}


# ------------------------------------------------------------------------------------------------- what another run has learned
@functools.cache
def checkpoint(workdir, field, gives):
    """The method of another run and its weights, for `extra["frozen"]`: -> Method, {"params": tree, "extra": tree} of numpy arrays.

    gives: the function that the method must have ("tokens" of a tokenizer, "embed" of any). Raises UserError naming config.method.`field`
    where there is no checkpoint, or that of another kind of method."""
    from ssljax import encoder

    try:
        other = encoder.restore(workdir)
    except UserError as error:
        raise UserError(f"config.method.{field}={workdir!r}: {error}") from None
    if not hasattr(other.built.method, gives):
        name = type(other.built.method).__name__
        raise UserError(
            f"config.method.{field}={workdir!r} is a checkpoint of {name}, which has no {gives}: expected a {field}, e.g. of dvae"
        )
    return other.built.method, {"params": other.params, "extra": other.extra}


def tokenizer_weights(workdir):
    """For `Method.weights`: the tokenizer of a first stage, or nothing where there is none."""
    return {"tokenizer": checkpoint(workdir, "tokenizer", "tokens")[1]} if workdir else {}


def codes(workdir):
    """How many words the tokenizer of a first stage has; 512 mean colours, 8 levels of each channel, where there is none."""
    return checkpoint(workdir, "tokenizer", "tokens")[0].codes if workdir else 512


def words(workdir, extra, images, patch_size):
    """The word of every patch, by the frozen tokenizer of a first stage, or the mean colour. Images (B, H, W, 3) -> int32 (B, N),
    row by row. Raises UserError for a tokenizer that says another number of words."""
    count = (images.shape[1] // patch_size) * (images.shape[2] // patch_size)
    if not workdir:
        colours = losses.patchify(images, patch_size).reshape(len(images), count, -1, 3).mean(2)
        return jnp.clip((colours + 2) * 2, 0, 7).astype(jnp.int32) @ jnp.array([64, 8, 1])
    method, _ = checkpoint(workdir, "tokenizer", "tokens")
    frozen = extra["frozen"]["tokenizer"]
    said = method.tokens(frozen["params"], frozen["extra"], images)
    if said.shape[1] != count:
        raise UserError(f"config.method.tokenizer={workdir!r} says {said.shape[1]} words of an image, the encoder has {count} patches")
    return said


def said_right(logits, words, mask, codes):
    """Metrics of the words (B, N) of masked patches (mask (B, N)) by logits (B, N, K): how many are right, how many the commonest word of
    the batch would get right, the share of the codebook that the batch uses."""
    counts = jnp.zeros(codes).at[words.reshape(-1)].add(1.0)
    return {"accuracy": accuracy(logits, words, mask), "commonest_word": counts.max() / words.size, "codebook_use": (counts > 0).mean()}


def tower_weights(workdir):
    """For `Method.weights`: the run whose features are targets, or nothing where there is none."""
    return {"tower": checkpoint(workdir, "tower", "embed")[1]} if workdir else {}


def tower_patches(workdir, extra, images, patch_size):
    """The features of every patch by the frozen encoder of another run, or the pixels themselves. Normalised images (B, H, W, 3) ->
    float32 (B, N, D), constant. A tower with another grid of patches is resized to this one, bilinearly."""
    rows, columns = images.shape[1] // patch_size, images.shape[2] // patch_size
    if not workdir:
        return losses.patchify(images, patch_size)
    method, _ = checkpoint(workdir, "tower", "embed")
    frozen = extra["frozen"]["tower"]
    stats = frozen["extra"].get("stats", {}).get("encoder", {})
    x = models.apply(method.encoder, frozen["params"]["encoder"], stats, images, train=False)[0]["patches"].astype(jnp.float32)
    side = round(x.shape[1] ** 0.5)
    if (side, side) != (rows, columns):
        x = jax.image.resize(x.reshape(len(x), side, side, -1), (len(x), rows, columns, x.shape[-1]), "bilinear")
    return jax.lax.stop_gradient(x.reshape(len(x), rows * columns, -1))


def blank(weights):
    """Zeros in the shapes of `weights`, whose place in `extra["frozen"]` they hold until the program puts the weights there."""
    return jax.tree.map(jnp.zeros_like, weights)
