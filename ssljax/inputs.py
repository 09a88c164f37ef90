"""From a checked config to what the entries feed to a program: tokenizer, training batches, evaluators' features."""

import dataclasses
import functools
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ssljax.errors import UserError

CAPTIONS = 10_000  # of a source, evenly spread, that a bpe:V:SOURCE tokenizer is trained on


def make_tokenizer(built):
    """The config's tokenizer at the length of the method's text tower; None for a method without one. Raises UserError if they differ."""
    from ssljax.data import text

    tower = getattr(built.method, "text", None)
    if tower is None:
        return None
    if not built.data.tokenizer or not built.data.caption:
        raise UserError(f"the method has a text tower: set config.data.tokenizer ({text.SPECS}) and config.data.caption (a field)")
    tokenizer = text.make(built.data.tokenizer, tower.length, captions=_captions(built.data.tokenizer, built.data.caption))
    if tokenizer.vocab_size > tower.vocab_size:
        raise UserError(
            f"config.data.tokenizer={built.data.tokenizer!r} has {tokenizer.vocab_size} ids, "
            f"config.method.text.vocab_size={tower.vocab_size} is fewer"
        )
    return text.with_knowledge(tokenizer, built.data.knowledge) if built.data.knowledge else tokenizer


def _captions(spec, field):
    """The captions that a bpe:V:SOURCE tokenizer is trained on; None for the others. SOURCE is in the spec so that ids do not change with
    the data a checkpoint is judged on."""
    from ssljax.data import sources

    kind, _, rest = spec.partition(":")
    name = rest.partition(":")[2]
    if kind != "bpe" or not name:
        return None
    # The embedded data straight from its recipe: no TensorFlow, and a quarter of it says every word.
    source = sources.scenes(name.rpartition("/")[2], "train", 2048) if name.startswith("scenes/") else sources.open(name, "train")
    if field not in source.fields or source.fields[field].kind != "text":
        texts = [key for key, value in source.fields.items() if value.kind == "text"]
        raise UserError(f"config.data.tokenizer={spec!r}: {name!r} has no text {field!r}; it has {', '.join(texts) or 'none'}")
    return _texts(source, field)


def _texts(source, field):
    ids = np.linspace(0, len(source) - 1, min(len(source), CAPTIONS)).astype(int)
    return [record[field] for record in source.__getitems__(ids)]


def captions_of(built, source):
    """Captions of a source, at most CAPTIONS of them; () where it has none under config.data.caption."""
    field = built.data.caption
    if field not in source.fields or source.fields[field].kind != "text":
        return ()
    return _texts(source, field)


def train_batches(config, built, source, tokenizer, start_step, workdir=None):
    """This process's rows of the raw global batches from `start_step` on, a `pipeline.Batches`.

    Broken images are counted in its `bad` and listed in workdir/bad_examples.jsonl (of process P > 0: bad_examples_P.jsonl).
    """
    from ssljax.data import bad, pipeline

    process = jax.process_index()
    path = None if workdir is None else pathlib.Path(workdir) / f"bad_examples{f'_{process}' if process else ''}.jsonl"
    return pipeline.train_batches(
        source,
        batch=config.batch,
        seed=config.seed,
        start_step=start_step,
        crop=built.data.crop,
        views={name: vars(group) for name, group in built.groups.items()},
        image_size=built.data.image_size,
        tokenizer=tokenizer,
        text_key=built.data.caption,
        label=label_of(built, source),
        process_index=process,
        process_count=jax.process_count(),
        threads=built.data.threads,
        bad=bad.BadExamples(path, built.data.bad_share),
    )


def features(built, program, state, source, tokenizer, *, images=0, pairs=True):
    """Frozen features of every example of `source`: what `evals.features.extract` returns, the config's label under "label" and
    every kind of label under "label:<kind>". images: keep so many pictures. pairs: as `embedder` has it."""
    from ssljax.data import pipeline
    from ssljax.evals.features import extract

    kinds = source.labels()
    label = label_of(built, source)
    batch = -(-built.evals.batch // program.mesh.size) * program.mesh.size  # any number of devices
    batches = pipeline.eval_batches(
        source,
        batch=batch,
        image_size=built.data.image_size,
        ratio=built.data.resize_ratio,
        label=label,
        extra=tuple(kind for kind in kinds if kind != label),
        tokenizer=tokenizer,
        text_key=built.data.caption,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=built.data.threads,
    )
    total = -(-len(source) // batch)
    batches = tqdm(batches, f"features of {len(source)} pictures", total, unit="batch", leave=False, disable=None)  # None: on a terminal
    rows = extract(embedder(program, state, pairs=pairs), batches, program.put, images=images)
    return label_columns(rows, kinds, label)


def embedder(program, state, *, pairs=True):
    """batch on the device -> {"features": ...}. pairs: what image-text methods compare as well, which nobody asks of a train set, and which
    may be large."""

    def embed(batch):
        out = program.embed(state.params, state.extra, batch)
        return out if pairs else {k: v for k, v in out.items() if not k.endswith("_embedding")}

    return embed


def label_of(built, source):
    """The field that is "label": the config's, or else the first label of the source (people's own folders call it "label"); or None."""
    kinds = source.labels()
    return built.data.label if built.data.label in kinds else next(iter(kinds), None)


def label_columns(rows, kinds, label):
    """Kinds of label that came under their own name -> "label:<kind>"; the one that came as "label" under both names."""
    out = {(f"label:{k}" if k in kinds and k != "label" else k): v for k, v in rows.items()}
    if label is not None and "label" in out:
        out[f"label:{label}"] = out["label"]
    return out


def class_names(source):
    """{kind of label: names} of a source."""
    return {kind: list(source.fields[kind].classes) for kind in source.labels()}


def prompts(source, name=""):
    """{kind of label: templates} for zero-shot: the set of data/prompts.py called `name`, or else those of the embedded data, or two that
    suit any noun."""
    from ssljax.data import prompts as sets
    from ssljax.data import scenes_recipe

    own = {} if name else scenes_recipe.PROMPTS.get(source.name.rpartition("/")[2], {})
    return {kind: list(own.get(kind, sets.named(name or "generic"))) for kind in source.labels()}


TEXTS = 256  # embedded in one call, at least


def text_embedder(program, state, tokenizer):
    """list of N strings -> text embeddings (N, E), or of words (N, T, E), float32; None for a method without a text tower."""
    if tokenizer is None:
        return None
    from ssljax.data import pipeline
    from ssljax.evals.features import extract

    # Of one size, whatever the number of classes and templates: one program for all of them, and ImageNet's 80,000 prompts fit.
    options = dict(batch=-(-TEXTS // program.mesh.size) * program.mesh.size)
    options |= dict(process_index=jax.process_index(), process_count=jax.process_count())

    def embed(texts):
        batches = pipeline.array_eval_batches({"text": tokenizer(list(texts))}, **options)
        return extract(embedder(program, state), batches, program.put)["text_embedding"]

    return embed


def caption_writer(built, program, state, tokenizer, captions, *, beams=1, length_penalty=1.0, batch=64):
    """uint8 pictures (N, S, S, 3), of the size the method takes -> N captions, the likeliest by `beams` (decode.beam); None for a method
    that writes none. captions: texts that spell the words of a tokenizer which keeps none."""
    from ssljax import decode, method

    if tokenizer is None or not hasattr(built.method, "writer"):
        return None
    spelling = functools.cache(captions)  # read once, and only for a tokenizer that keeps no words

    @jax.jit
    def ids_of(state, images):
        images = program.normalised(images)
        write = built.method.writer(*method.averaged(state.params, state.extra), images)
        write = dataclasses.replace(write, end=tokenizer.end or 0)
        if beams == 1:
            return decode.greedy(write, length=write.length)
        return decode.beam(write, length=write.length, beams=beams, length_penalty=length_penalty)[0]

    def write(images):
        rows = []
        for start in range(0, len(images), batch):
            part = np.asarray(images[start : start + batch])
            padded = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])
            rows.append(np.asarray(ids_of(state, padded))[: len(part)])
        return tokenizer.decode(np.concatenate(rows), () if tokenizer.spell else spelling())

    return write


def looker(built, program, state, *, batch=256):
    """What a method's encoder sees of pictures, `evals.Context.look`; None for a method whose encoder does not look at pictures."""
    from ssljax import method, models

    encoder = getattr(built.method, "encoder", None)
    if encoder is None or encoder is getattr(built.method, "text", 0):
        return None
    weights = method.averaged(state.params, state.extra)

    def see(params, extra, images):
        images = program.normalised(images)
        out = {"features": built.method.embed(params, extra, {"image": images})["features"]}
        if "encoder" not in params:
            return out
        stats = extra.get("stats", {}).get("encoder", {})
        more = {"layers": True} if "layers" in inspect.signature(type(encoder).__call__).parameters else {}
        seen, _ = models.apply(encoder, params["encoder"], stats, images, train=False, **more)
        if "layers" in seen:
            out["layers"] = jnp.moveaxis(seen["layers"].astype(jnp.float32).mean(2), 0, 1)
        patches = seen.get("patches")
        side = 0 if patches is None else round(patches.shape[1] ** 0.5)
        if side < 2 or side**2 != patches.shape[1]:
            return out
        out["patches"] = patches.reshape(len(images), side, side, -1)
        if getattr(encoder, "class_token", False):
            maps = models.attention(encoder, params["encoder"], images)[..., -(side**2) :]
            out["attention"] = maps.reshape(len(images), -1, side, side)
        return out

    program_of = jax.jit(lambda params, extra, images: {k: v.astype(jnp.float32) for k, v in see(params, extra, images).items()})

    def look(images):
        rows = []
        with jax.set_mesh(program.mesh):
            for part, count in _batches(images, batch, program):
                out = program_of(*weights, program.put({"image": part})["image"])
                rows.append({k: program.fetch(v)[:count] for k, v in out.items()})
        return {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}

    return look


def _batches(images, batch, program):
    """(this process's rows of a padded batch, how many of the whole batch are real), ..."""
    size = -(-min(batch, len(images)) // program.mesh.size) * program.mesh.size
    mine = size // jax.process_count()
    for start in range(0, len(images), size):
        part = np.asarray(images[start : start + size])
        padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
        yield padded[jax.process_index() * mine :][:mine], len(part)


def viewer(built, program, images, most=256):
    """count -> uint8 (N, count, H, W, 3): pictures as training augments them, `evals.Context.views`; of at most `most` of images."""
    images = images[:most]
    name = next((name for name, group in built.groups.items() if group.count), None)
    if name is None:
        return None
    augmented = jax.jit(lambda batch: program.pixels(program.augment(batch)[name][:, 0]))

    def views(count):
        out = []
        for epoch in range(count):  # the draws are those of (seed, epoch, picture)
            rows = []
            with jax.set_mesh(program.mesh):
                for part, real in _batches(images, 256, program):
                    ids = np.arange(len(part), dtype=np.int32)
                    raw = {"image": part, "id": ids, "epoch": np.full_like(ids, epoch), "label": 0 * ids, "valid": ids >= 0}
                    rows.append(program.fetch(augmented(program.put(raw)))[:real])
            out.append(np.concatenate(rows))
        return np.stack(out, axis=1)

    return views


def dense_of(built):
    """Pictures whose pixels have a truth, at the config's size, `evals.Context.dense`."""
    from ssljax.data import dense

    return functools.cache(lambda kind, split: dense.load(getattr(built.evals, kind), kind, split, built.data.image_size))


def judge(names, built, program, state, source, train, test, tokenizer, *, seed=0):
    """Run evaluators on extracted features. -> {metric: float}, {evaluator: why it does not apply}. state: None where the features are the
    raw pixels."""
    from ssljax import evals
    from ssljax.evals.features import raw_pixels

    raw = lambda images: {"features": raw_pixels(images)}  # noqa: E731
    context = evals.Context(
        train=train,
        test=test,
        classes=len(class_names(source).get(label_of(built, source), ())),
        text_embed=text_embedder(program, state, tokenizer),
        write=caption_writer(built, program, state, tokenizer, lambda: captions_of(built, source)),
        look=raw if state is None else looker(built, program, state),
        views=viewer(built, program, test["image"]) if "image" in test and built.data.crop == "device" else None,
        dense=dense_of(built),
        class_names=class_names(source),
        prompts=prompts(source),
        seed=seed,
    )
    return evals.judge(names, context)
