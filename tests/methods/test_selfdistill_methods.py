"""What self-distillation has beside its losses: masks, a Gram teacher, teachers without stochastic depth. Steps are swept elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import method, models, networks, trees
from ssljax.methods import dinov2, swav
from tests.conftest import METHODS, program_of, raw_batch

pytestmark = pytest.mark.quick


def test_some_images_are_masked_by_blocks_and_the_masked_patches_come_first():
    images = jnp.zeros((512, 56, 56, 3))
    mask, ids = jax.jit(lambda key: networks.some_blocks(key, images, 4, ratio=(0.1, 0.5), chance=0.5))(jax.random.PRNGKey(0))
    share = np.asarray(mask).mean(1)
    masked = share > 0
    assert mask.shape == (512, 196) and ids.shape == (512, 98)
    assert 0.42 < masked.mean() < 0.58
    assert share.max() <= 0.5 and 0.25 < share[masked].mean() < 0.33  # uniform from 0.1 to 0.5, less what does not fit
    picked = np.take_along_axis(np.asarray(mask), np.asarray(ids), axis=1)
    np.testing.assert_array_equal(picked.sum(1), np.asarray(mask).sum(1))  # all of them are among the ids
    assert (np.diff(picked.astype(int), axis=1) <= 0).all()  # and in front
    grid = np.asarray(mask)[masked].reshape(-1, 14, 14)
    assert (grid[:, 1:] == grid[:, :-1]).mean() > 0.85  # blocks, not noise


def test_the_gram_teacher_rests_and_then_becomes_the_teacher():
    m = dinov2.DINOv2(gram_weight=1.0, gram_start=5, gram_every=3)
    plans = m.schedules(method.Run(steps=20, batch=4, examples=40))
    steps = jnp.arange(12)
    np.testing.assert_array_equal(plans["gram_weight"](steps), [0] * 5 + [1] * 7)
    np.testing.assert_array_equal(plans["gram_refresh"](steps), [0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0])  # step 4 gives step 5 its own
    tree = lambda x: {"encoder": {"w": jnp.full(2, x)}}  # noqa: E731
    extra = {"teacher": tree(1.0), "teacher_stats": {}, "gram": tree(7.0)["encoder"]}
    for refresh, expected in ((0.0, 7.0), (1.0, 2.0)):  # the teacher half way to the student
        after = m.after_step(tree(3.0), extra, {"ema": jnp.float32(0.5), "gram_refresh": jnp.float32(refresh)})
        np.testing.assert_allclose(after["gram"]["w"], expected)
        np.testing.assert_allclose(after["teacher"]["encoder"]["w"], 2.0)


@pytest.mark.thorough
def test_a_teacher_drops_no_path():
    vit = models.module_class("vit")(image_size=8, patch_size=4, width=8, depth=2, heads=2, mlp_dim=8, drop_path=0.5)
    views = jax.random.normal(jax.random.key(0), (3, 2, 8, 8, 3))
    params, stats = networks.init({"encoder": vit}, jax.random.PRNGKey(0), views)
    extra = {"stats": stats, **networks.teacher(params, stats)}
    a, b = (networks.taught({"encoder": vit}, extra, views, rng=jax.random.PRNGKey(i))[0]["encoder"]["pooled"] for i in (0, 1))
    np.testing.assert_array_equal(a, b)


def test_swavs_queue_is_used_once_it_is_full_and_due():
    run = method.Run(steps=100, batch=8, examples=40)
    used = lambda **settings: swav.SwAV(queue=64, **settings).schedules(run)["queue_used"](jnp.arange(20))  # noqa: E731
    assert int(used().argmax()) == 8 and int(used(queue_start_epochs=3.0).argmax()) == 15
    assert swav.SwAV().schedules(run) == {}


@pytest.mark.parametrize("name, expected", [("simclr", [(32, 0)]), ("moco", [(16, 0), (16, 0)]), ("dino", [(32, 0), (32, 0), (64, 1)])])
@pytest.mark.thorough
def test_views_of_one_size_make_one_pass(name, expected):
    """(pictures, which size) of every pass of a step of 16 examples: DINO's teacher and student over 2 large views, 4 small in a third."""
    config, _, run = program_of(METHODS[name], "1")
    raw = raw_batch(config)
    with models.passes() as passes:
        jax.eval_shape(run.train_step, run.shapes, raw)
    sides = sorted({shape[1] for shape in passes}, reverse=True)
    assert sorted((shape[0], sides.index(shape[1])) for shape in passes) == expected
    with models.passes() as outside:
        pass
    assert outside == []


@pytest.mark.parametrize("name", ["simclr", "moco", "mocov3", "byol", "barlow_twins", "swav"])
@pytest.mark.thorough
def test_batch_statistics_tell_nothing_about_which_views_belong_together(name):
    """What MoCo v1 shuffles for. On eight devices, every encoding is the same whatever the order of the examples, and so whatever
    device each lies on and with whom: its statistics are the whole batch's."""
    config, built, run = program_of(METHODS[name], "data=8")
    raw = raw_batch(config)
    with jax.set_mesh(run.mesh):
        params, extra = run.init().params, run.init().extra
        batch = jax.jit(run.augment)(run.put(raw))
        s = {key: plan(jnp.int32(0)) for key, plan in run.schedules.items()}
        encode = jax.jit(lambda batch: built.method.encode(params, extra, batch, jax.random.PRNGKey(0), s)[0])
        order = np.random.default_rng(0).permutation(config.batch)
        shuffled = run.put({key: np.asarray(value)[order] for key, value in batch.items()})
        plain, other = encode(batch), encode(shuffled)
    for (where, want), got in zip(trees.names(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(want)[order], rtol=1e-4, atol=1e-5, err_msg=where)
