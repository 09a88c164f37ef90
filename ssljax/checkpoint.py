"""Checkpoints: save asynchronously, restore on any mesh, read the config back. The only file that imports Orbax.

On disk a state is a nested dict whose names are those of `trees.names` ("params/encoder/.../kernel", "opt/0/mu/...")
so that a checkpoint is readable without the classes that made it. A step is one directory:

    directory/STEP/state/               the arrays (OCDBT), every process writes its shards
    directory/STEP/config/metadata      the run's config, JSON
    directory/STEP/info/metadata        what the caller adds: fingerprints, scores, JSON
    directory/STEP/commit_success.txt   written last: without it the step does not exist
"""

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from ssljax import trees
from ssljax.errors import UserError

COMMIT = "commit_success.txt"  # Orbax's own name, of AtomicityMode.COMMIT_FILE


def exists(directory):
    """Whether `directory` holds at least one complete checkpoint: an empty or half-written step does not count."""
    directory = epath.Path(directory)
    return directory.is_dir() and any(p.name.isdigit() and (p / COMMIT).exists() for p in directory.iterdir())


class Checkpoints:
    """The checkpoints of one run, in one directory. Every process of a run makes one and makes the same calls.

    directory: a local or gs:// path; made unless read_only.
    keep: how many of the newest steps are kept.
    every: `due(step)` is true at its multiples; None: never. `save` itself always saves.
    read_only: for evaluation: nothing in the directory is made, changed or deleted.
    """

    def __init__(self, directory, *, keep=3, every=None, read_only=False):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        if keep < 1:
            raise UserError(f"checkpoint.keep={keep}: at least 1 checkpoint must be kept")
        if every is not None and every < 1:
            raise UserError(f"checkpoint.every={every}: expected a number of steps >= 1, or None")
        self.directory = epath.Path(directory) if "://" in str(directory) else epath.Path(directory).resolve()
        self.every = every
        self._ocp = ocp
        if read_only and not self.directory.is_dir():
            raise UserError(f"no checkpoint: {self.directory} is not a directory")
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        tree_handler, json_handler = ocp.PyTreeCheckpointHandler(), ocp.JsonCheckpointHandler()
        registry.add("state", ocp.args.PyTreeSave, tree_handler)
        registry.add("state", ocp.args.PyTreeRestore, tree_handler)
        for item in ("config", "info"):
            registry.add(item, ocp.args.JsonSave, json_handler)
            registry.add(item, ocp.args.JsonRestore, json_handler)
        options = ocp.CheckpointManagerOptions(
            save_interval_steps=0 if read_only else 1,
            preservation_policy=checkpoint_managers.LatestN(keep),
            # The default on POSIX, rename, takes an empty directory named 7 for step 7; a commit file does not.
            atomicity_options=ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE),
            create=not read_only,
            read_only=read_only,
        )
        try:
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
        An error of an earlier save's writing surfaces here, in `wait` or in `close`.
        """
        args = self._ocp.args
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=args.Composite(
                state=args.PyTreeSave(_to_dict(jax.tree.map(_raw, state))),
                config=args.JsonSave(config),
                info=args.JsonSave(extra or {}),
            ),
            force=True,  # Orbax would silently skip a step older than its latest
        )

    def wait(self):
        """Blocks until every save begun is on disk; raises what a save raised."""
        self._manager.wait_until_finished()

    def close(self):
        """`wait`, then lets go of the directory."""
        self.wait()
        self._manager.close()

    # ---------------------------------------------------------------- reading

    def latest(self):
        """The newest complete step (int), or None. Waits for a save under way, not to be trusted until it has ended."""
        self.wait()
        return self._manager.latest_step()

    def config(self, step=None):
        """The config (dict) stored with `step` (default: the latest)."""
        return self._json("config", step)

    def info(self, step=None):
        """The `extra` dict given to `save` at `step` (default: the latest)."""
        return self._json("info", step)

    def shapes(self, step=None):
        """What is stored, without reading it: {"params/a/b": ShapeDtypeStruct}; typed keys as their uint32 data."""
        # Not the manager's item_metadata: with commit files it fails on all processes but the first, after a save.
        metadata = self._ocp.PyTreeCheckpointHandler().metadata(self.directory / str(self._verify(step)) / "state")
        return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in trees.names(metadata.tree)}

    def restore(self, abstract_state, step=None):
        """Reads `step` (default: the latest) into the structure, dtypes, shapes and shardings of `abstract_state`.

        abstract_state: pytree of jax.ShapeDtypeStruct. With `.sharding` a leaf comes back as a jax.Array laid out so,
        whatever mesh it was saved from; without, as a numpy array.
        Raises UserError if there is no such step, or if any name, shape or dtype differs: checked before reading.
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
        args = self._ocp.args
        return self._manager.restore(self._verify(step), args=args.Composite(**{item: args.JsonRestore()}))[item]

    def _verify(self, step):
        """`step`, or the latest if None; raises UserError if it is not there. Every read passes here: the place where a
        manifest of hashes would be checked."""
        self.wait()
        steps = sorted(self._manager.all_steps())
        if not steps or (step is not None and step not in steps):
            found = sorted(p.name for p in self.directory.iterdir()) if self.directory.is_dir() else []
            listing = ", ".join(found[:10] + ["..."] * (len(found) > 10)) or "nothing"
            wanted = f"no checkpoint of step {step}" if step is not None else "no complete checkpoint"
            raise UserError(f"{wanted} in {self.directory}; complete steps: {steps or 'none'}; the directory holds {listing}")
        return steps[-1] if step is None else step


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
