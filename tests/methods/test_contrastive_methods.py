"""What the contrastive methods have beside their losses: banks, queues, pieces, senses. Steps and meshes are swept in test_contract.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import config as configs
from ssljax import losses, method, models, networks, trees
from ssljax.augment import geometry, mixing
from ssljax.errors import UserError
from ssljax.methods import cmc, cpc, instdisc, metric, mochi, pirl
from ssljax.models.context import RowContext

pytestmark = pytest.mark.quick


def unit(*shape, seed=0):
    return np.array(losses.normalise(jax.random.normal(jax.random.key(seed), shape)))


def test_a_bank_moves_the_rows_of_the_batch_and_no_other():
    bank, rows, ids = unit(7, 4), unit(2, 4, seed=1), np.array([5, 2])
    moved = networks.remember(jnp.asarray(bank), jnp.asarray(ids), jnp.asarray(rows), 0.3)
    after = np.asarray(moved.written())
    np.testing.assert_array_equal(moved.written(jnp.asarray(False)), bank)
    expected = bank.copy()
    moved = 0.3 * bank[ids] + 0.7 * rows
    expected[ids] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    np.testing.assert_allclose(after, expected, rtol=1e-5)


@pytest.mark.parametrize("noise", [0, 3])
def test_instdisc_tells_an_image_from_its_bank(noise):
    m = instdisc.InstDisc(encoder=None, projector=None, examples=9, noise=noise, temperature=0.2, proximal=2.0)
    bank, v, ids = unit(9, 4), unit(3, 4, seed=1), np.array([8, 0, 3])
    drawn = np.array([[1, 2, 3], [4, 4, 5], [6, 7, 8]])[:, :noise]
    extra = {"bank": jnp.asarray(bank), "log_mean": jnp.zeros(())}
    loss, (after, _) = m.objective({}, extra, {"v": jnp.asarray(v), "noise": jnp.asarray(drawn)}, {"id": jnp.asarray(ids)}, {})
    after = trees.written(after)
    logits, own = v @ bank.T / 0.2, np.arange(3)
    if noise:
        noises = logits[:, drawn.reshape(-1)]
        z = 9 * np.mean(np.exp(noises))
        chance = lambda x: (np.exp(x) / z) / (np.exp(x) / z + noises.shape[1] / 9)  # noqa: E731
        expected = -np.mean(np.log(chance(logits[own, ids])) + np.log(1 - chance(noises)).sum(1))
        again = m.objective({}, after, {"v": jnp.asarray(-v), "noise": jnp.asarray(drawn)}, {"id": jnp.asarray(ids)}, {})[1][0]
        assert after["log_mean"] == again["log_mean"] != 0  # estimated once
    else:
        expected = -np.mean(logits[own, ids] - np.log(np.exp(logits).sum(1)))
    expected += 2.0 * np.mean(np.sum((v - bank[ids]) ** 2, axis=1))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(after["bank"][1], bank[1])
    assert np.all(np.sum(np.asarray(after["bank"])[ids] * v, 1) > np.sum(bank[ids] * v, 1))


def test_a_bank_that_is_too_small_is_named():
    with pytest.raises(UserError, match="config.method.examples=9.*10 training examples"):
        instdisc.InstDisc(encoder=None, projector=None, examples=9).schedules(method.Run(steps=1, batch=1, examples=10))


def test_mochi_mixes_the_hardest_keys_of_each_query():
    m = mochi.MoCHi(encoder=None, projector=None, hardest=2, mixtures=1, towards=1, queue=9)
    q, queue = unit(3, 5), unit(9, 5, seed=1)
    which, share = np.array([[[0, 1], [1, 0]]] * 3), np.full((3, 2), 0.25, np.float32)
    made = m.negatives(jnp.asarray(q), jnp.asarray(queue), jnp.asarray(which), jnp.asarray(share))
    for i in range(3):
        first, second = np.argsort(-queue @ q[i])[:2]
        for got, mixed in zip(made[i], (0.25 * queue[first] + 0.75 * queue[second], 0.125 * q[i] + 0.875 * queue[first]), strict=True):
            np.testing.assert_allclose(got, mixed / np.linalg.norm(mixed), rtol=1e-5)
    # During the warm-up they weigh nothing.
    extra = {"queue": jnp.asarray(queue), "pointer": jnp.int32(0)}
    encodings = {"q": jnp.asarray(q), "k": jnp.asarray(unit(3, 5, seed=2)), "which": jnp.asarray(which), "share": jnp.asarray(share)}
    plain = losses.info_nce(encodings["q"], encodings["k"], queue=extra["queue"], temperature=m.temperature)
    warm, mixed = (m.objective({}, extra, encodings, {}, {"mixing": jnp.float32(on)})[0] for on in (0, 1))
    assert warm == plain and mixed > plain


def test_tiles_are_squares_of_their_cells():
    image = jnp.arange(2 * 12 * 12, dtype=jnp.float32).reshape(2, 12, 12, 1)
    tiles = np.asarray(geometry.tiles(jax.random.key(0), image, side=3, gap=0.5))
    assert tiles.shape == (2, 9, 2, 2, 1)
    for b, tile in np.ndindex(2, 9):
        row, column = np.divmod(tiles[b, tile, ..., 0].astype(int) - 144 * b, 12)
        np.testing.assert_array_equal(row - row[0, 0], [[0, 0], [1, 1]])
        np.testing.assert_array_equal(column - column[0, 0], [[0, 1], [0, 1]])
        assert (row // 4 == tile // 3).all() and (column // 4 == tile % 3).all()


def test_pirl_shuffles_the_pieces_of_each_image_by_itself():
    m = pirl.PIRL(encoder=None, projector=None, piece=None, puzzle=None, side=2, gap=0.0)
    images = jnp.kron(jnp.arange(8.0).reshape(2, 2, 2), jnp.ones((1, 3, 3)))[..., None]  # a number to each cell
    orders = {tuple(np.asarray(m.shuffled(jax.random.key(i), images))[0, :, 0, 0, 0].astype(int)) for i in range(20)}
    assert len(orders) > 5 and all(sorted(order) == [0, 1, 2, 3] for order in orders)


def test_cpc_cuts_overlapping_patches_and_its_context_never_looks_down():
    m = cpc.CPC(encoder=None, context=None, projector=None, side=3)
    image = jnp.arange(16.0 * 16).reshape(1, 16, 16, 1)
    patches = m.patches(image)
    assert patches.shape == (1, 9, 8, 8, 1)
    np.testing.assert_array_equal(patches[0, 5], image[0, 4:12, 8:16])  # row 1, column 2
    context, x = RowContext(width=8, depth=3), jax.random.normal(jax.random.key(0), (1, 5, 4, 6))
    params, stats = models.init(context, jax.random.key(1), x, train=False)
    see = jax.jit(lambda x: models.apply(context, params, stats, x, train=False)[0])
    moved = np.abs(np.asarray(see(x.at[:, 3].add(1.0)) - see(x))).max((0, 2, 3))  # row 3 has changed
    assert (moved[:3] == 0).all() and (moved[3:] > 0).all()


def test_cmc_senses():
    m = cmc.CMC(encoder=None, projector=None, mean=(0.5,) * 3, std=(0.25,) * 3)
    grey = jnp.broadcast_to(jnp.linspace(-2, 2, 5)[:, None], (5, 3)).reshape(1, 1, 5, 3)  # black to white
    sense = m.sense(grey)
    assert {name: x.shape[-1] for name, x in sense.items()} == {"lightness": 1, "colour": 2}
    np.testing.assert_allclose(sense["lightness"][0, 0, [0, -1], 0], [-1, 1], atol=1e-3)
    np.testing.assert_allclose(sense["colour"], 0, atol=1e-3)
    with pytest.raises(UserError, match="config.method.senses.*two or more"):
        cmc.CMC(encoder=None, projector=None, senses=("lightness",))


def test_imix_mixes_keys_as_it_mixes_pictures():
    weight, keys = jnp.array([1.0, 0.25, 0.5]), jnp.asarray(unit(3, 4))
    mixed = mixing.mix(keys, weight)
    np.testing.assert_allclose(mixed, mixing.mix(jnp.eye(3), weight) @ keys, rtol=1e-6)


@pytest.mark.parametrize("name", metric.LOSSES)
def test_every_metric_loss_draws_classes_apart(name):
    m = metric.Metric(encoder=None, projector=None, loss_name=name)
    z, labels = jnp.asarray(unit(8, 2, 6)), jnp.arange(8) % 3
    step = jax.jit(jax.grad(lambda z: m.objective({}, {}, {"z": losses.normalise(z)}, {"label": labels}, {})[0]))

    def gap(z):
        z, y = metric.rows(losses.normalise(z), labels)
        same = y[:, None] == y[None, :]
        return float(jnp.mean((z @ z.T)[same]) - jnp.mean((z @ z.T)[~same]))

    before = gap(z)
    for _ in range(40):
        slope = step(z)
        z = z - 0.2 * slope / (jnp.linalg.norm(slope) + 1e-9)  # nothing is left to do where a hinge holds
    assert gap(z) > before + 0.1


def test_an_unknown_metric_loss_is_named():
    config = configs.load("configs/metric_resnet_scenes.py")
    config.method.loss_name = "tripet"
    with pytest.raises(UserError, match="config.method.loss_name='tripet'.*triplet"):
        configs.build(config)
