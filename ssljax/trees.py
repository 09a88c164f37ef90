"""Pytrees by name: every leaf has a path like "encoder/blocks/attn/qkv/kernel"; regexes over it pick parameters."""

import hashlib
import re
import typing

import flax
import jax
import jax.numpy as jnp
import numpy as np


def _key(entry):
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def path_name(path):
    """Key path of `jax.tree_util` -> "a/b/c"."""
    return "/".join(_key(entry) for entry in path)


def names(tree):
    """Tree -> list of (name, leaf), in the tree's own order."""
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def map_names(function, tree, *rest):
    """`function(name, leaf, *other_leaves)` at every leaf; same structure out."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(path_name(path), *leaves), tree, *rest)


def first_match(rules, name, default=None):
    """The value of the first (regex, value) whose regex is found in `name` (`re.search`); the idiom behind every rule."""
    for pattern, value in rules:
        if re.search(pattern, name):
            return value
    return default


def ema(old, new, decay):
    """decay * old + (1 - decay) * new, leaf by leaf, in old's dtype. decay: scalar in [0, 1]."""
    return jax.tree.map(lambda o, n: (o + (1.0 - decay) * (n - o)).astype(o.dtype), old, new)


@flax.struct.dataclass
class Moved:
    """A leaf of what a step makes of a tree: `array` (N, ...) as it was, of which rows `ids` int (B,) become `rows` (B, ...); ids that it
    has not are dropped. For banks as long as the data: with the rows written into it, beside the one of before, which a step goes back to
    where its gradient is not finite, such an array is copied whole at every step."""

    array: typing.Any
    ids: typing.Any
    rows: typing.Any

    def written(self, wanted=True):
        """The array with its rows moved, or as it was where `wanted`, a bool scalar, is false."""
        return self.array.at[self.ids].set(jnp.where(wanted, self.rows, self.array[self.ids]), mode="drop")


def _is_moved(leaf):
    return isinstance(leaf, Moved)


def written(tree):
    """The tree with every `Moved` leaf written."""
    return jax.tree.map(lambda leaf: leaf.written() if _is_moved(leaf) else leaf, tree, is_leaf=_is_moved)


def chosen(condition, new, old):
    """`new` where the bool scalar `condition` is true, else `old`; leaves of `new` may be `Moved`."""
    either = lambda n, o: n.written(condition) if _is_moved(n) else jnp.where(condition, n, o)  # noqa: E731
    return jax.tree.map(either, new, old, is_leaf=_is_moved)


def size(tree):
    """Number of scalars in all leaves."""
    return sum(int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(tree))


def bytes_per_device(tree):
    """Bytes that one device holds of this tree of sharded arrays (its first shard of every leaf)."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def sha256(tree):
    """Hex digest over names, dtypes, shapes and bytes of all leaves: equal if and only if the trees are bitwise equal."""
    digest = hashlib.sha256()
    for name, leaf in names(tree):
        array = np.asarray(jax.device_get(leaf))
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def norm(tree):
    """Global L2 norm of all leaves, float32 scalar."""
    squares = lambda x: jnp.square(2 * x) / 4  # noqa: E731 -- not x * x, which Adam has too: XLA's CPU compiler would share it, written out
    return jnp.sqrt(sum(jnp.sum(squares(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)))


def copy(tree):
    """A tree of new buffers: a teacher that starts equal to its student must not share donated memory with it."""
    return jax.tree.map(jnp.copy, tree)
