"""Writing with a cache, word by word, against running the whole text again for every word."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import decode, models
from ssljax.errors import UserError
from ssljax.models import text

pytestmark = pytest.mark.quick

VOCABULARY, LENGTH, START = 7, 5, 6


@pytest.fixture(scope="module")
def tower():
    module = text.TextTransformer(
        vocab_size=VOCABULARY, length=LENGTH, width=16, depth=2, heads=2, mlp_dim=32, cross=True, causal=True, memory_width=8
    )
    memory = jax.random.normal(jax.random.PRNGKey(1), (3, 4, 8))
    params, _ = models.init(module, jax.random.PRNGKey(0), jnp.zeros((3, LENGTH), jnp.int32), train=False, memory=memory)
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.PRNGKey(x.size), x.shape), params)
    return module, params, memory


def logits_of(tower, words):
    """Log probabilities (B, T, V) of every next word, the whole text in one pass. words: int (B, T)."""
    module, params, memory = tower
    read = jnp.concatenate([jnp.full((len(words), 1), START), words[:, :-1]], axis=1)
    out, _ = models.apply(module, params, {}, read, train=False, memory=jnp.broadcast_to(memory, (len(words), *memory.shape[1:])))
    return jax.nn.log_softmax((out["tokens"] @ params["token_embed"]["embedding"].T).at[..., START].set(-jnp.inf))


@pytest.mark.thorough
def test_greedy_is_the_argmax_of_the_whole_text_run_again(tower):
    module, params, memory = tower
    got = np.asarray(jax.jit(lambda p, m: decode.greedy(decode.tower(module, p, m, START), length=LENGTH))(params, memory))
    words, ended = np.zeros((3, LENGTH), np.int32), np.zeros(3, bool)
    for at in range(LENGTH):
        best = np.asarray(logits_of(tower, jnp.asarray(words)))[:, at].argmax(-1)
        words[:, at] = np.where(ended, 0, best)
        ended |= words[:, at] == 0
    np.testing.assert_array_equal(got, words)


@pytest.mark.thorough
def test_enough_beams_find_the_likeliest_text_of_all(tower):
    module, params, memory = tower
    length, one = 3, memory[:1]
    texts = [t for t in itertools.product(range(START), repeat=length) if all(b == 0 for a, b in zip(t, t[1:], strict=False) if a == 0)]
    padded = jnp.asarray([[*t, 0, 0] for t in texts])
    chance = np.asarray(logits_of((module, params, one), padded))[:, :length]
    at = np.take_along_axis(chance, np.asarray(texts)[..., None], axis=2)[..., 0]
    counts = np.concatenate([np.ones((len(texts), 1)), np.asarray(texts)[:, :-1] != 0], axis=1)  # words up to the end, with it
    score = (at * counts).sum(1)
    words, best = jax.jit(lambda p, m: decode.beam(decode.tower(module, p, m, START), length=length, beams=36))(params, one)
    assert tuple(np.asarray(words)[0]) == texts[score.argmax()]
    np.testing.assert_allclose(best[0], score.max(), rtol=1e-5)
    single, _ = decode.beam(decode.tower(module, params, memory, START), length=LENGTH, beams=1)
    np.testing.assert_array_equal(single, decode.greedy(decode.tower(module, params, memory, START), length=LENGTH))


@pytest.mark.thorough
def test_samples_have_the_models_own_frequencies(tower):
    module, params, memory = tower
    many = jnp.broadcast_to(memory[:1], (4096, *memory.shape[1:]))
    write = decode.tower(module, params, many, START)
    first = np.asarray(decode.sample(write, jax.random.PRNGKey(0), length=1))[:, 0]
    chance = np.exp(np.asarray(logits_of((module, params, memory[:1]), jnp.zeros((1, 1), jnp.int32)))[0, 0])
    np.testing.assert_allclose(np.bincount(first, minlength=VOCABULARY) / 4096, chance, atol=0.03)
    order = np.argsort(-chance)
    two = np.asarray(decode.sample(write, jax.random.PRNGKey(1), length=1, top_k=2))[:, 0]
    assert set(two) == set(order[:2])
    nucleus = np.asarray(decode.sample(write, jax.random.PRNGKey(2), length=1, top_p=float(chance[order[0]]) + 1e-3))[:, 0]
    assert set(nucleus) == set(order[:2])
    cold = np.asarray(decode.sample(write, jax.random.PRNGKey(3), length=1, temperature=1e-3))[:, 0]
    assert set(cold) == {order[0]}


def test_a_text_longer_than_the_table_of_positions_is_refused(tower):
    with pytest.raises(UserError, match="places for 5 tokens"):
        decode.greedy(decode.tower(*tower, START), length=6)
