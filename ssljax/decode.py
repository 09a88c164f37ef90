"""Texts written word by word, by a decoder that looks at a picture: greedy, sampled, by beams; with a cache, and jitted.

    write = decode.tower(module, params, memory, start=vocabulary - 1)
    ids = decode.greedy(write, length=12)                       # int32 (B, 12)
    ids = decode.sample(write, rng, length=12, temperature=0.7, top_p=0.9)
    ids, scores = decode.beam(write, length=12, beams=4)

Id 0 is padding and ends a text, as the writer's `end` does: behind the first of them all is 0.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Writer:
    """What gives the next word's logits; `tower` makes one of a text tower with cross-attention.

    next: (cache, ids int (B, 1), the place of that token, memory) -> float32 logits (B, V), cache; {} is no cache yet.
    memory: (B, M, C), what it looks at. start: the id that a text starts with. length: the most tokens it has places for.
    end: the id behind which nothing is said; 0, padding, always ends."""

    next: Callable
    memory: Any
    start: int
    length: int
    end: int = 0

    def begin(self, rows=1):
        """The cache in front of the first word, each picture `rows` times."""
        memory = jnp.repeat(self.memory, rows, axis=0)
        _, cache = self.next({}, jnp.full((len(memory), 1), self.start), jnp.int32(0), memory)
        # That call made the cache and filled in its first place; it is filled in again by the first word that is written.
        return memory, jax.tree.map(lambda x: jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.integer) else x, cache)

    def __call__(self, state, ids, at):
        """state: (memory, cache). ids: int (B,), the token at place `at` -> float32 logits of the next (B, V), state."""
        memory, cache = state
        logits, cache = self.next(cache, ids[:, None], jnp.asarray(at, jnp.int32), memory)
        return (logits if self.start == self.end else logits.at[:, self.start].set(-jnp.inf)), (memory, cache)

    def ended(self, ids):
        """Which of ids int are the end of a text."""
        return (ids == 0) | (ids == self.end)


def tower(module, params, memory, start):
    """The Writer of a text tower (models/text.py) that looks at memory (B, M, C); its output layer is its token embedding transposed."""

    def next_word(cache, ids, at, memory):
        out, cache = cached(module, params, cache, ids, memory=memory, at=at)
        return out["tokens"][:, 0].astype(jnp.float32) @ params["token_embed"]["embedding"].T.astype(jnp.float32), cache

    return Writer(next_word, memory, start, module.length)


def cached(module, params, cache, *args, **more):
    """module(*args, **more) in evaluation, with a cache of the tokens before ({}: none yet). -> outputs, cache."""
    given = {"cache": cache} if cache else {}
    out, changed = module.apply({"params": params, **given}, *args, train=False, **more, mutable=["cache"])
    return out, changed["cache"]


def _loop(write, length, choose, rng):
    """choose(rng, logits (B, V)) -> ids (B,)."""
    _check(write, length)

    def step(carry, at):
        state, ids, ended = carry
        logits, state = write(state, ids, at)
        ids = jnp.where(ended, 0, choose(jax.random.fold_in(rng, at), logits)).astype(jnp.int32)
        return (state, ids, ended | write.ended(ids)), ids

    count = len(write.memory)
    start = (write.begin(), jnp.full(count, write.start, jnp.int32), jnp.zeros(count, bool))
    _, ids = jax.lax.scan(step, start, jnp.arange(length))
    return ids.T


def greedy(write, *, length):
    """The likeliest word each time. -> int32 (B, length)."""
    return _loop(write, length, lambda rng, logits: logits.argmax(-1), jax.random.PRNGKey(0))


def sample(write, rng, *, length, temperature=1.0, top_k=0, top_p=1.0):
    """Words drawn from softmax(logits / temperature), of the top_k likeliest (0: all), of the fewest that have top_p of the probability
    (nucleus sampling, Holtzman et al. 2019). -> int32 (B, length)."""
    if temperature <= 0 or not 0 < top_p <= 1:
        raise UserError(f"temperature={temperature}, top_p={top_p}: expected a temperature above 0 and 0 < top_p <= 1")

    def choose(rng, logits):
        logits = logits / temperature
        if top_k:
            logits = jnp.where(logits < jax.lax.top_k(logits, top_k)[0][:, -1:], -jnp.inf, logits)
        if top_p < 1:
            down = -jnp.sort(-logits, axis=-1)
            before = jnp.cumsum(jax.nn.softmax(down), axis=-1) - jax.nn.softmax(down)  # of the likelier words
            least = jnp.where(before < top_p, down, jnp.inf).min(-1, keepdims=True)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return jax.random.categorical(rng, logits)

    return _loop(write, length, choose, rng)


def beam(write, *, length, beams=4, length_penalty=0.0):
    """The best of `beams` texts kept at every word, by log probability / number of words ** length_penalty.

    -> int32 (B, length), scores float32 (B,)."""
    _check(write, length)
    count, far = len(write.memory), -1e9
    rows = jnp.arange(count)[:, None] * beams

    def step(carry, at):
        state, ids, score, words = carry  # of B * beams: ids (B * beams,), score (B, beams), words (B, beams, length)
        logits, state = write(state, ids, at)
        chance = jax.nn.log_softmax(logits).reshape(count, beams, -1)
        vocabulary = chance.shape[-1]
        ended = write.ended(ids.reshape(count, beams))[..., None]
        chance = jnp.where(ended, jnp.where(jnp.arange(vocabulary) == 0, 0.0, far), chance)  # what has ended goes on with padding
        score, best = jax.lax.top_k((score[..., None] + chance).reshape(count, -1), beams)
        parent, word = best // vocabulary, best % vocabulary
        pick = (rows + parent).reshape(-1)
        memory, cache = state
        cache = jax.tree.map(lambda x: x[:, pick] if x.ndim > 1 else x, cache)  # (layers, B * beams, ...)
        words = jnp.take_along_axis(words, parent[..., None], axis=1).at[:, :, at].set(word)
        return ((memory, cache), word.reshape(-1).astype(jnp.int32), score, words), None

    first = jnp.where(jnp.arange(beams) == 0, 0.0, far) * jnp.ones((count, 1))  # all beams are the same at the start: one counts
    start = (write.begin(beams), jnp.full(count * beams, write.start, jnp.int32), first, jnp.zeros((count, beams, length), jnp.int32))
    (_, _, score, words), _ = jax.lax.scan(step, start, jnp.arange(length))
    score = score / jnp.maximum((words != 0).sum(-1), 1) ** length_penalty
    best = score.argmax(-1)
    return words[jnp.arange(count), best], score[jnp.arange(count), best]


def _check(write, length):
    if length > write.length:
        raise UserError(f"length={length}: the decoder has places for {write.length} tokens")
