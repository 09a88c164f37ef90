"""Checkpoints: save asynchronously, restore on any mesh, read the config back. The only file that imports Orbax.

On disk a state is a nested dict whose names are those of `trees.names` ("params/encoder/.../kernel", "opt/0/mu/...")
so that a checkpoint is readable without the classes that made it. A step is one directory:

    directory/STEP/state/               the arrays (OCDBT), every process writes its shards
    directory/STEP/config/metadata      the run's config, JSON
    directory/STEP/info/metadata        what the caller adds: fingerprints, scores, JSON
    directory/STEP/manifest.json        size and SHA-256 of each of these files
    directory/STEP/commit_success.txt   written last: without it the step does not exist
    directory/scores.json               {step: number of the evaluation that `best` names}

Process 0 writes the manifest when all processes have written and before the step is committed, in Orbax's own thread: so every step that
exists has one, and a kill at any moment leaves no step half signed. A step without one comes from an older version: it is used, with
a line that says it could not be verified.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from ssljax import trees
from ssljax.errors import UserError

COMMIT = "commit_success.txt"  # Orbax's own name, of AtomicityMode.COMMIT_FILE
MANIFEST = "manifest.json"
LEAST_SLICE = 2**20  # bytes that each replica of an array writes, where they share it
UNSIGNED = (COMMIT, MANIFEST, "_CHECKPOINT_METADATA")  # the last: times of day, which Orbax completes after all else
DISK = r"No space left|RESOURCE_EXHAUSTED|Read-only|Permission denied|PERMISSION_DENIED|No such file|NOT_FOUND|quota|Input/output error"


def locate(directory):
    """A run, named by its workdir or by its checkpoints folder (local or gs://). -> epath.Path of the workdir, and of that folder.

    A folder of steps that stands alone, whatever its name, is both.
    """
    directory = epath.Path(directory)
    if (directory / "checkpoints").is_dir():
        return directory, directory / "checkpoints"
    return (directory.parent if directory.name == "checkpoints" else directory), directory


def exists(directory):
    """Whether `directory` holds at least one complete checkpoint: an empty or half-written step does not count."""
    directory = epath.Path(directory)
    return directory.is_dir() and any(p.name.isdigit() and (p / COMMIT).exists() for p in directory.iterdir())


class Checkpoints:
    """The checkpoints of one run, in one directory. Every process of a run makes one and makes the same calls.

    directory: a local or gs:// path; made unless read_only.
    keep: how many of the newest steps are kept. keep_every: those at its multiples are kept as well, for ever; 0: none.
    best, keep_best: so many steps whose `score` in this number is highest are kept as well; "": none.
    every: `due(step)` is true at its multiples; None: never. `save` itself always saves.
    read_only: for evaluation: nothing in the directory is made, changed or deleted.
    say: prints a line, of a damaged step or one that cannot be verified; by default process 0 prints it to stderr.
    """

    def __init__(self, directory, *, keep=3, keep_every=0, best="", keep_best=1, every=None, read_only=False, say=None):
        import orbax.checkpoint as ocp

        if keep < 1:
            raise UserError(f"checkpoint.keep={keep}: at least 1 checkpoint must be kept")
        if every is not None and every < 1:
            raise UserError(f"checkpoint.every={every}: expected a number of steps >= 1, or None")
        self.directory = epath.Path(directory) if "://" in str(directory) else epath.Path(directory).resolve()
        self.every = every
        self._ocp = ocp
        self._say = say or _tell
        self._damages = {}  # step -> what is wrong with it, "" for nothing: of those looked at
        self._fallen = []  # steps newer than the one that was read, damaged: the next save replaces them
        self._saving = None
        self._keep, self._keep_every, self._best, self._keep_best = keep, keep_every, best, keep_best
        if read_only and not self.directory.is_dir():
            raise UserError(f"no checkpoint: {self.directory} is not a directory")
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        tree_handler, json_handler = ocp.PyTreeCheckpointHandler(type_handler_registry=_handlers(ocp)), ocp.JsonCheckpointHandler()
        registry.add("state", ocp.args.PyTreeSave, tree_handler)
        registry.add("state", ocp.args.PyTreeRestore, tree_handler)
        for item in ("config", "info"):
            registry.add(item, ocp.args.JsonSave, json_handler)
            registry.add(item, ocp.args.JsonRestore, json_handler)
        options = ocp.CheckpointManagerOptions(
            save_interval_steps=0 if read_only else 1,
            preservation_policy=self,  # `should_preserve`
            async_options=ocp.AsyncOptions(post_finalization_callback=None if read_only else self._write_manifest),
            # The default on POSIX, rename, takes an empty directory named 7 for step 7; a commit file does not.
            atomicity_options=ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE),
            create=not read_only,
            read_only=read_only,
        )
        try:
            self._scores = self._read_scores()
            self._manager = ocp.CheckpointManager(self.directory, options=options, handler_registry=registry)
        except OSError as error:
            raise UserError(f"checkpoints cannot be kept in {self.directory}: {error}") from error

    # ---------------------------------------------------------------- writing

    def due(self, step):
        """Whether `step` (int, steps done) is one to save at."""
        return self.every is not None and step > 0 and step % self.every == 0

    def save(self, step, state, config, extra=None):
        """Saves `state` as `step` and returns once the arrays are copied off the devices; files are written behind.

        step: int. state: pytree of arrays (jax, numpy, typed PRNG keys); its buffers may be donated right after.
        config, extra: JSON-able dicts, read back by `config()` and `info()`. A step already saved is left as it is.
        An error of an earlier save's writing surfaces here, in `wait` or in `close`: UserError for a disk that is full, read-only or gone.
        """
        args = self._ocp.args
        self.wait()
        if not self.directory.is_dir():
            raise UserError(f"{self.directory} is gone: step {step} was not saved; put it back, or start anew in another --workdir")
        with self._disk(step):
            while self._fallen:
                self._manager.delete(self._fallen.pop())
            if step in self._manager.all_steps():
                return
            self._saving = step
            self._damages.pop(step, None)
            self._manager.save(
                step,
                args=args.Composite(
                    state=args.PyTreeSave(_to_dict(jax.tree.map(_raw, state))),
                    config=args.JsonSave(config),
                    info=args.JsonSave(extra or {}),
                ),
                force=True,  # Orbax would silently skip a step older than its latest
            )

    def score(self, step, numbers):
        """Notes what an evaluation ({name: float}) said of `step`, for `best`. Raises UserError if it has no such number."""
        if not self._best:
            return
        if self._best not in numbers:
            raise UserError(f"config.checkpoint.best={self._best!r}: evaluations give {', '.join(sorted(numbers))}")
        self._scores[step] = float(numbers[self._best])
        if jax.process_index() == 0:
            with self._disk(step):
                self.directory.joinpath("scores.json").write_text(json.dumps({"name": self._best, "scores": self._scores}))

    def should_preserve(self, checkpoints, *, context=None):
        """Orbax's PreservationPolicy: which of these (ascending `.step`) are kept -> list of bool."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        scored = sorted((step for step in steps if step in self._scores), key=self._scores.get)
        kept = {*steps[-self._keep :], *(scored[-self._keep_best :] if self._best else ())}
        return [step in kept or bool(self._keep_every and step % self._keep_every == 0) for step in steps]

    def wait(self):
        """Blocks until every save begun is on disk, its manifest too; raises what a save raised."""
        with self._disk(self._saving):
            self._manager.wait_until_finished()

    def _write_manifest(self):
        """Orbax calls it in its thread, on process 0, between the last file of a step and the commit."""
        folder = self.directory / str(self._saving)
        (folder / MANIFEST).write_text(json.dumps({"step": self._saving, "files": _digests(folder)}, indent=1))

    def _read_scores(self):
        """Scores of an earlier start of this run, of the same number; a file that cannot be read is no reason to stop."""
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
            stored = json.loads((self.directory / "scores.json").read_text())
            if stored["name"] == self._best:
                return {int(step): float(score) for step, score in stored["scores"].items()}
        return {}

    @contextlib.contextmanager
    def _disk(self, step):
        """What a disk does to a save becomes a UserError; a mistake of ours stays what it is."""
        try:
            yield
        except Exception as error:
            text = " ".join(str(error).split())
            if not isinstance(error, OSError) and not re.search(DISK, text):
                raise
            raise UserError(
                f"step {step} could not be saved in {self.directory}: {_short(text)}. Steps saved before it are as they were: make room, "
                "then start the same command again"
            ) from error

    def close(self):
        """`wait`, then lets go of the directory."""
        self.wait()
        self._manager.close()

    # ---------------------------------------------------------------- reading

    def latest(self):
        """The newest complete step (int) whose files are those that were written, or None if there is no step.

        Waits for a save under way, not to be trusted until it has ended. A line names each damaged step that is passed over. Raises
        UserError if there are steps and all are damaged."""
        self.wait()
        return self._verify(None) if self._manager.all_steps() else None

    def config(self, step=None):
        """The config (dict) stored with `step` (default: the latest)."""
        return self._json("config", step)

    def info(self, step=None):
        """The `extra` dict given to `save` at `step` (default: the latest)."""
        return self._json("info", step)

    def fingerprint(self, step=None):
        """SHA-256 (hex) of the manifest of `step`, which has that of every file; "" for a step without a manifest."""
        manifest = self.directory / str(self._verify(step)) / MANIFEST
        return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else ""

    def shapes(self, step=None):
        """What is stored, without reading it: {"params/a/b": ShapeDtypeStruct}; typed keys as their uint32 data."""
        # Not the manager's item_metadata: with commit files it fails on all processes but the first, after a save.
        step = self._verify(step)
        with self._reading(step):
            metadata = self._ocp.PyTreeCheckpointHandler().metadata(self.directory / str(step) / "state")
        return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in trees.names(metadata.tree)}

    def restore(self, abstract_state, step=None):
        """Reads `step` (default: the latest) into the structure, dtypes, shapes and shardings of `abstract_state`.

        abstract_state: pytree of jax.ShapeDtypeStruct. With `.sharding` a leaf comes back as a jax.Array laid out so,
        whatever mesh it was saved from; without, as a numpy array.
        Raises UserError if there is no such step, if a file of it was altered (without `step`: falls back to the newest that is whole),
        or if any name, shape or dtype differs: checked before reading.
        """
        return self._restore(abstract_state, step, partial=False)

    def restore_parts(self, abstract, step=None):
        """Reads only the leaves in `abstract`, a dict such as {"params": ..., "extra": ...} of ShapeDtypeStructs.

        The rest of the checkpoint (the optimizer's moments, say) is never read. Returns the same dict, of arrays.
        Raises as `restore` does."""
        return self._restore(abstract, step, partial=True)

    def _restore(self, abstract, step, partial):
        step = self._verify(step)
        raw = jax.tree.map(_raw_abstract, abstract)
        self._check_matches(raw, step, partial)
        target = _to_dict(raw)
        restore = self._ocp.args.PyTreeRestore(
            item=target,
            restore_args=self._ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=partial,
        )
        with self._reading(step):
            restored = self._manager.restore(step, args=self._ocp.args.Composite(state=restore))["state"]
        found = dict(trees.names(restored))
        leaves = [found[name] for name, _ in trees.names(raw)]
        return jax.tree.map(_like, abstract, jax.tree.unflatten(jax.tree.structure(raw), leaves))

    def _check_matches(self, expected, step, partial):
        """Raises UserError naming the leaves whose name, shape or dtype differ; Orbax by itself would cast silently."""
        stored = self.shapes(step)
        expected = dict(trees.names(expected))
        wrong = []
        for name, leaf in expected.items():
            if name not in stored:
                wrong.append(f"{name}: expected {_spell(leaf)}, not in the checkpoint")
            elif (leaf.shape, leaf.dtype) != (stored[name].shape, stored[name].dtype):
                wrong.append(f"{name}: expected {_spell(leaf)}, the checkpoint has {_spell(stored[name])}")
        if not partial:
            unexpected = [name for name in stored if name not in expected]
            wrong += [f"{name}: not expected, the checkpoint has {_spell(stored[name])}" for name in unexpected]
        if wrong:
            lines = "\n  ".join(wrong[:10])
            more = f"\n  and {len(wrong) - 10} more" if len(wrong) > 10 else ""
            raise UserError(
                f"the checkpoint {self.directory / str(step)} does not fit this config's state "
                f"({len(wrong)} arrays differ); use the config it was made with, or another --workdir:\n  {lines}{more}"
            )

    def _json(self, item, step):
        args, step = self._ocp.args, self._verify(step)
        with self._reading(step):
            return self._manager.restore(step, args=args.Composite(**{item: args.JsonRestore()}))[item]

    @contextlib.contextmanager
    def _reading(self, step):
        """Whatever Orbax stumbles over in a step that no manifest vouches for (or that changes as it is read) becomes a UserError."""
        try:
            yield
        except Exception as error:
            text = " ".join(str(error).split())
            raise UserError(f"checkpoint {self.directory / str(step)} cannot be read: {type(error).__name__}: {_short(text)}") from error

    def _verify(self, step):
        """`step`, or the newest that is whole if None; UserError if it is not there or damaged. Every read passes here."""
        self.wait()
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps or (step is not None and step not in steps):
            found = sorted(p.name for p in self.directory.iterdir()) if self.directory.is_dir() else []
            listing = ", ".join(found[:10] + ["..."] * (len(found) > 10)) or "nothing"
            wanted = f"no checkpoint of step {step}" if step is not None else "no complete checkpoint"
            raise UserError(f"{wanted} in {self.directory}; complete steps: {steps[::-1] or 'none'}; the directory holds {listing}")
        told = []
        for candidate in [step] if step is not None else steps:
            fresh = candidate not in self._damages
            damage = self._damage(candidate)
            if not damage:
                self._fallen = self._fallen if step is not None else [bad for bad in steps if bad > candidate]
                for line in told:
                    self._say(f"{line}; falling back to step {candidate}")
                return candidate
            line = f"checkpoint {self.directory / str(candidate)} is damaged: {damage}"
            told += [line] if fresh else []
            if step is not None:
                raise UserError(f"{line}; of this directory's steps {steps[::-1]} choose another, or none for the newest that is whole")
        raise UserError(f"{line}, and no step in {self.directory} is whole: use another --workdir to start anew")

    def _damage(self, step):
        """What is wrong with the files of `step`, "" for nothing; process 0 reads them, all processes know."""
        if step not in self._damages:
            text = _compare(self.directory / str(step), self._say) if jax.process_index() == 0 else ""
            if jax.process_count() > 1:
                from jax.experimental import multihost_utils

                line = np.frombuffer(text.encode()[:512].ljust(512), np.uint8)
                text = bytes(np.asarray(multihost_utils.broadcast_one_to_all(line))).decode(errors="replace").strip()
            self._damages[step] = text
        return self._damages[step]


def _handlers(ocp):
    """Orbax's handlers of leaves. Of an array that several devices hold each writes a part, by a program of its own for each shape and
    place: for small ones that takes longer to compile than to write (the first save of a ResNet of 80 k parameters on 4 devices)."""
    from orbax.checkpoint._src.metadata import array_metadata_store  # Orbax has no public name for what its own handler is made with

    known = {kind: ocp.type_handlers.get_type_handler(kind) for kind in ocp.type_handlers.supported_types()}
    store = array_metadata_store.Store()
    known[jax.Array] = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=LEAST_SLICE, array_metadata_store=store)
    return ocp.type_handlers.create_type_handler_registry(*known.items())


def _short(text):
    """At most 300 characters of a library's message: its end has the reason."""
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-195:]}"


def _tell(line):
    if jax.process_index() == 0:
        print(f"warning: {line}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------------ the manifest


def _digests(folder):
    """{path below folder: [bytes, SHA-256]} of every file of a step but UNSIGNED. A few threads: hashing lets go of Python's lock."""
    names, folders = [], [folder]
    while folders:
        for path in folders.pop().iterdir():
            if path.is_dir():
                folders.append(path)
            elif str(path.relative_to(folder)) not in UNSIGNED:
                names.append(str(path.relative_to(folder)))

    def digest(name):
        total, hasher = 0, hashlib.sha256()
        with (folder / name).open("rb") as file:
            while block := file.read(2**22):
                hasher.update(block)
                total += len(block)
        return [total, hasher.hexdigest()]

    with concurrent.futures.ThreadPoolExecutor(4, "manifest") as pool:
        return dict(zip(sorted(names), pool.map(digest, sorted(names)), strict=True))


def _compare(folder, say):
    """The first file of a step that is not as its manifest has it, in words; "" if all are, or if there is no manifest (and a line)."""
    path = folder / MANIFEST
    if not path.exists():
        say(f"checkpoint {folder} has no {MANIFEST} (an older version wrote it): its files cannot be verified")
        return ""
    try:
        signed = json.loads(path.read_bytes())["files"]
        found = _digests(folder)
        for name, (size, digest) in signed.items():
            if name not in found:
                return f"{name} is missing"
            if found[name][0] != size:
                return f"{name} has {found[name][0]} bytes, {size} were written"
            if found[name][1] != digest:
                return f"{name} has other bytes than were written"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    except OSError as error:
        return f"it cannot be read: {error}"
    return ""


# -------------------------------------------------------------------- pytree <-> what is stored


def _is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf):
    """A leaf as Orbax stores it: arrays stay, numbers become arrays, typed PRNG keys become their uint32 data."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf, dtype=jnp.result_type(leaf))  # as eval_shape sees it: int32 for 3, not numpy's int64
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _raw_abstract(leaf):
    if not _is_key(leaf):
        return leaf
    data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def _like(abstract, leaf):
    """The inverse of `_raw`."""
    if not _is_key(abstract):
        return leaf
    impl = []  # the implementation's name is told of a key only, not of a ShapeDtypeStruct
    key_like = jax.ShapeDtypeStruct(abstract.shape, abstract.dtype)
    jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), key_like)
    return jax.random.wrap_key_data(leaf, impl=impl[0])


def _to_dict(tree):
    """Any pytree -> nested dict by name: tuples by index, dataclasses by field; empty containers vanish."""
    root = {}
    for name, leaf in trees.names(tree):
        *parents, last = name.split("/")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return root


def _spell(leaf):
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
