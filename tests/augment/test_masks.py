"""Masks of patches: exact counts, and the laws of the published generators, written here as plain loops."""

import functools
import math

import jax
import numpy as np
import pytest

from ssljax.augment import masks
from ssljax.errors import UserError

GRID = (14, 14)
ONE = {
    "random": (functools.partial(masks.random, grid=GRID, masked=147), 147),
    "block": (functools.partial(masks.block, grid=GRID, masked=75), 75),
    "inverse_block": (functools.partial(masks.inverse_block, grid=GRID, masked=157), 157),
    "cells": (functools.partial(masks.cells, grid=GRID, masked=120), 120),
    "lattice": (functools.partial(masks.lattice, grid=GRID), 147),
    "tube": (functools.partial(masks.tube, grid=(6, 7), frames=4, masked=38), 4 * 38),
    "tube of blocks": (functools.partial(masks.tube, grid=(7, 10), frames=3, masked=28, draw=functools.partial(masks.block, least=4)), 84),
}


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


@functools.cache
def batched(name):
    return jax.jit(jax.vmap(ONE[name][0]))


@functools.cache
def drawn(name):
    """Numpy arrays of 400 draws."""
    return jax.tree.map(np.asarray, batched(name)(keys(400)))


@pytest.mark.parametrize("name", ONE)
def test_counts_are_exact_and_the_parts_agree(name):
    masked, out = ONE[name][1], drawn(name)
    patches = out["mask"].shape[1]
    assert out["ids_keep"].shape[1] == patches - masked and out["ids_masked"].shape[1] == masked
    assert {k: v.dtype.name for k, v in out.items()} == {
        "ids_keep": "int32", "ids_masked": "int32", "ids_restore": "int32", "mask": "float32",
    }  # fmt: skip
    for keep, gone, mask, restore in zip(out["ids_keep"], out["ids_masked"], out["mask"], out["ids_restore"], strict=True):
        assert sorted([*keep, *gone]) == list(range(patches))
        assert (mask[keep] == 0).all() and (mask[gone] == 1).all()
        np.testing.assert_array_equal(np.concatenate([keep, gone])[restore], np.arange(patches))


@pytest.mark.parametrize("name", ONE)
def test_a_mask_depends_on_its_key_alone(name):
    """Not on what else is in the batch, nor on its place there."""
    order = np.random.default_rng(0).integers(0, 200, 400)
    again = batched(name)(keys(400)[order])
    for part, values in drawn(name).items():
        np.testing.assert_array_equal(again[part], values[order])
    assert len(np.unique(drawn(name)["mask"], axis=0)) >= 4  # and keys differ


def test_a_mask_alone_is_the_mask_in_a_batch():
    alone = jax.jit(ONE["block"][0])(keys(400)[3])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[3]), alone, drawn("block"))


def test_masks_may_be_drawn_inside_a_differentiated_step():
    def loss(scale, key):
        return scale * masks.block(key, GRID, masked=75)["mask"].sum()

    assert jax.jit(jax.grad(loss))(2.0, jax.random.key(0)) == 75


# --------------------------------------------------------------------------------------------------------- plain-loop laws


def beit(rng, height, width, target, least):
    """BEiT's published generator, a loop at a time: bool (height, width), at most `target` patches."""
    mask, failures = np.zeros((height, width), bool), 0
    while mask.sum() < target and failures < 10:
        room = target - mask.sum()
        area = rng.uniform(min(least, room), max(least, room))
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        failures += 1
        if h < height and w < width:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            new = h * w - mask[top : top + h, left : left + w].sum()
            if 0 < new <= room:
                mask[top : top + h, left : left + w] = True
                failures = 0
    return mask


def edges(mask):
    """Borders between masked and visible patches: few for large blocks."""
    mask = mask.astype(int)
    return np.abs(np.diff(mask, axis=-1)).sum((-1, -2)) + np.abs(np.diff(mask, axis=-2)).sum((-1, -2))


def agree(ours, reference):
    """Means of two samples of one law: within four standard errors."""
    error = math.hypot(ours.std() / len(ours) ** 0.5, reference.std() / len(reference) ** 0.5)
    assert abs(ours.mean() - reference.mean()) <= 4 * error, (ours.mean(), reference.mean(), error)


def test_block_follows_beits_generator():
    rng = np.random.default_rng(0)
    reference = np.stack([beit(rng, *GRID, 75, 16) for _ in range(600)])
    ours = np.asarray(jax.jit(jax.vmap(lambda key: masks.block_region(key, GRID, most=75)))(keys(600)))
    agree(ours.sum((1, 2)), reference.sum((1, 2)))  # it may fall short
    agree(ours.sum((1, 2)) == 75, reference.sum((1, 2)) == 75)
    agree(edges(ours), edges(reference))  # large blocks have few
    assert edges(ours).mean() < 0.45 * edges(drawn_uniform(75)).mean()
    middle = np.s_[:, 4:10, 4:10]  # where blocks lie more often than at the border
    agree(ours[middle].mean((1, 2)), reference[middle].mean((1, 2)))


def test_what_a_block_mask_lacks_is_taken_beside_its_blocks():
    region = jax.jit(jax.vmap(lambda key: masks.block_region(jax.random.split(key)[0], GRID, most=75)))(keys(400))
    beside = np.pad(np.asarray(region), ((0, 0), (1, 1), (1, 1)))
    beside = beside[:, :-2, 1:-1] | beside[:, 2:, 1:-1] | beside[:, 1:-1, :-2] | beside[:, 1:-1, 2:]
    filled = drawn("block")["mask"].reshape(-1, *GRID) - region
    assert (filled >= 0).all() and filled.sum() > 50
    assert (filled <= beside).all()


def drawn_uniform(masked, n=400):
    rng = np.random.default_rng(5)
    out = np.zeros((n, 196), bool)
    for row in out:
        row[rng.permutation(196)[:masked]] = True
    return out.reshape(-1, *GRID)


def data2vec(rng, height, width, masked, side, adjust):
    """data2vec 2.0's inverse masks: bool (height, width), True = masked."""
    keep = height * width - masked
    visible = np.zeros((height, width), bool)
    for _ in range(int(height * width * (keep / (height * width) + adjust) / side**2)):
        row, column = divmod(rng.integers(height * width), width)
        for i in range(side):
            for j in range(side):
                r, c = row + i - side // 2, column + j - side // 2
                # The published code clamps r and c: a square over the border falls on the border row, which it covers anyway.
                visible[min(max(r, 0), height - 1), min(max(c, 0), width - 1)] = True
    flat = visible.reshape(-1)
    while flat.sum() > keep:
        flat[rng.choice(np.flatnonzero(flat))] = False
    while flat.sum() < keep:
        flat[rng.choice(np.flatnonzero(~flat))] = True
    return ~visible


def test_inverse_block_follows_data2vec_2():
    rng = np.random.default_rng(1)
    reference = np.stack([data2vec(rng, *GRID, 157, 3, 0.07) for _ in range(400)])
    ours = drawn("inverse_block")["mask"].reshape(-1, *GRID)
    agree(edges(ours), edges(reference))
    border = np.s_[:, 0]
    agree(ours[border].mean(1), reference[border].mean(1))
    assert edges(ours).mean() < 0.75 * edges(drawn_uniform(157)).mean()


def test_cells_are_simmims():
    coarse = drawn("cells")["mask"].reshape(-1, 7, 2, 7, 2)
    assert (coarse == coarse[:, :, :1, :, :1]).all()  # whole cells
    share = coarse[:, :, 0, :, 0].mean(0)
    assert abs(share - 30 / 49).max() < 5 * 0.5 / 400**0.5  # ceil(0.6 * 49) = 30 of them, each as often
    with pytest.raises(UserError, match="masked=121.*multiple of 4"):
        masks.cells(jax.random.key(0), GRID, masked=121)
    with pytest.raises(UserError, match="side=4 does not divide.*14 x 14"):
        masks.cells(jax.random.key(0), GRID, masked=64, side=4)


def test_lattice_keeps_the_same_patch_of_every_cell():
    visible = 1 - drawn("lattice")["mask"].reshape(-1, 7, 2, 7, 2)
    assert (visible.sum((2, 4)) == 1).all()
    assert (visible == visible[:, :1, :, :1]).all()
    assert abs(visible[:, 0, :, 0].mean(0) - 0.25).max() < 0.1
    with pytest.raises(UserError, match="side=3 does not divide"):
        masks.lattice(jax.random.key(0), GRID, side=3)


def test_tubes_hide_the_same_patches_in_every_frame():
    out = drawn("tube")
    mask = out["mask"].reshape(-1, 4, 42)
    assert (mask == mask[:, :1]).all() and (mask.sum(2) == 38).all()
    assert abs(mask[:, 0].mean(0) - 38 / 42).max() < 0.08  # VideoMAE's: uniform within a frame
    np.testing.assert_array_equal(out["ids_keep"].reshape(-1, 4, 4) // 42, np.broadcast_to(np.arange(4)[None, :, None], (400, 4, 4)))


# ------------------------------------------------------------------------------------------------------------ multi-block


def ijepa(rng, height, width, least):
    """I-JEPA's published sampler for one image; blocks reach the last row and column, sizes under `least` patches are drawn again."""

    def size(scale, aspect):
        area = int(height * width * (scale[0] + rng.uniform() * (scale[1] - scale[0])))
        ratio = aspect[0] + rng.uniform() * (aspect[1] - aspect[0])
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        while h >= height:
            h -= 1
        while w >= width:
            w -= 1
        return h, w

    def place(h, w):
        mask = np.zeros((height, width), bool)
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        mask[top : top + h, left : left + w] = True
        return mask

    shape = (0, 0)
    while shape[0] * shape[1] < least:
        shape = size((0.15, 0.2), (0.75, 1.5))
    targets = [place(*shape) for _ in range(4)]
    context = place(*size((0.85, 1.0), (1.0, 1.0)))
    for target in targets:
        context &= ~target
    return np.stack(targets), context


@pytest.mark.parametrize(("grid", "least"), [((14, 14), 29), ((8, 12), 1)])
def test_multi_block_regions_follow_i_jepa(grid, least):
    rng = np.random.default_rng(2)
    targets, context = (np.stack(x) for x in zip(*[ijepa(rng, *grid, least) for _ in range(600)], strict=True))
    draw = jax.jit(jax.vmap(lambda key: masks.multi_block_regions(key, grid, least=least)))
    ours, region = (np.asarray(x) for x in draw(keys(600)))

    area = ours.sum((2, 3))
    assert (area == area[:, :1]).all()  # one size for all four
    height, width = ours.any(3).sum(2), ours.any(2).sum(2)
    assert (height * width == area).all() and (area >= least).all()  # solid rectangles
    agree(area[:, 0], targets.sum((2, 3))[:, 0])
    agree(height[:, 0] / width[:, 0], targets.any(3).sum(2)[:, 0] / targets.any(2).sum(2)[:, 0])
    agree(ours.any(1).sum((1, 2)), targets.any(1).sum((1, 2)))  # how much the targets overlap
    agree(region.sum((1, 2)), context.sum((1, 2)))
    assert not (ours.any(1) & region).any()
    assert abs(ours.mean((0, 1)) - targets.mean((0, 1))).max() < 0.07  # where they lie: 2,400 draws, one of which lies like the other


def test_multi_block_counts_are_exact():
    draw = jax.jit(jax.vmap(lambda key: masks.multi_block(key, GRID, context=48)))
    out = jax.tree.map(np.asarray, draw(keys(128)))
    assert out["ids_keep"].shape == (128, 48) and out["ids_masked"].shape == (128, 4, 29) and out["mask"].shape == (128, 4, 196)
    assert all(v.dtype == np.int32 for k, v in out.items() if k != "mask")
    draw_keys = jax.vmap(lambda key: jax.random.split(key)[0])(keys(128))
    region = jax.jit(jax.vmap(lambda key: masks.multi_block_regions(key, GRID, least=29)[1]))(draw_keys)
    for keep, own in zip(out["ids_keep"], np.asarray(region).reshape(128, -1), strict=True):
        assert own[keep].sum() == min(48, own.sum())  # the context, and what lies outside it only where it is too small
    leaks = 0
    for keep, ids, mask in zip(out["ids_keep"], out["ids_masked"], out["mask"], strict=True):
        assert len(set(keep)) == 48
        for target, own in zip(ids, mask, strict=True):
            assert target.tolist() == sorted(set(target)) and set(np.flatnonzero(own)) == set(target)
            rows, columns = target // 14, target % 14
            # The first 29 of a block, row by row: no row but the last is incomplete.
            assert [(rows == r).sum() for r in range(rows[0], rows[-1])] == [len(set(columns))] * (rows[-1] - rows[0])
        leaks += bool(set(keep) & set(ids.reshape(-1)))
    assert leaks <= 1
    again = draw(keys(128)[::-1])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[::-1], b), again, out)


def test_a_context_without_room_takes_targets_last():
    out = jax.jit(functools.partial(masks.multi_block, grid=(4, 4), context=15, target_scale=(0.5, 0.6)))(jax.random.key(0))
    hidden = set(np.flatnonzero(np.asarray(out["mask"]).max(0)))
    assert len(set(np.asarray(out["ids_keep"]).tolist())) == 15 and set(range(16)) - hidden <= set(np.asarray(out["ids_keep"]).tolist())


def test_counts_that_no_grid_gives():
    key = jax.random.key(0)
    for masked in (0, 196, 200):
        with pytest.raises(UserError, match=f"masked={masked} is not among 1 to 195"):
            masks.random(key, GRID, masked=masked)
        with pytest.raises(UserError, match=f"masked={masked}"):
            masks.block(key, GRID, masked=masked)
    with pytest.raises(UserError, match="context=197"):
        masks.multi_block(key, GRID, context=197)
    with pytest.raises(UserError, match="no block of 60 patches.*24 to 42"):
        masks.multi_block(key, GRID, context=20, target=60)
