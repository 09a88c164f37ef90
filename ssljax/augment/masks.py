"""Masks of patches, drawn on the device at fixed counts: a key and a grid in, ids out; `jax.vmap` over one key an example.

    keys = jax.random.split(rng, batch)  # or the examples' own keys: a mask depends on its key alone, never on the batch
    m = jax.vmap(lambda key: masks.block(key, (14, 14), masked=75))(keys)

Every function answers with the parts of `losses.random_masking`, for one example of N = rows x columns patches, row-major:

    ids_keep     int32 (N - masked,)  visible patches, for an encoder to gather
    ids_masked   int32 (masked,)      the others
    mask         float32 (N,)         1 = masked
    ids_restore  int32 (N,)           position of each patch in [ids_keep, ids_masked]

`masked` is a Python int, so shapes are static: MAE's 75 % of 196 is 147, BEiT's 40 % is 75. A law that gives another number of patches by
itself is brought to it by ranking: what the law masks comes first, ties are broken by noise, and the top `masked` are taken.

Why on the device, not in the loader: the dearest law, BEiT's, takes 55 us an image as a loop on the host, 6 % of the 900 us in which a
core decodes one. Here it adds 11 us to the 45 us of drawing and ranking the noise, on one CPU core (14 x 14, batch 256; best of 12), and
less where there is an accelerator. Nothing is sent over, and the masks of a step come back with its key.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.errors import UserError
from ssljax.losses.masked import random_masking


def random(key, grid, *, masked):
    """Uniform without replacement (MAE, He et al. 2021, section 3)."""
    return _top(jax.random.uniform(key, (_patches(grid),)), grid, masked)


def block(key, grid, *, masked, least=16, aspect=0.3):
    """Block-wise masking (BEiT, Bao et al. 2021, Algorithm 1, with the published code's rules).

    Blocks of area U(least, what is still missing) and log-uniform aspect ratio in [aspect, 1 / aspect] are put down until `masked`
    patches are covered; a block that does not fit, covers nothing new or too much is drawn again, and the tenth failure in a row ends it
    (`block_region`). There the published code stops, with all 75 of 14 x 14 in 69 % of draws and 74.5 on average; here what is missing
    is drawn at random, first from the patches that touch a block.
    """
    _check(grid, masked)
    draw_key, noise_key = jax.random.split(key)
    region = block_region(draw_key, grid, most=masked, least=least, aspect=aspect)
    return _top(2.0 * region + _touching(region) + jax.random.uniform(noise_key, grid), grid, masked)


def block_region(key, grid, *, most, least=16, aspect=0.3):
    """What the published code covers by itself: bool (rows, columns), `most` patches or somewhat fewer."""
    rows, columns = grid

    def attempt(state):
        key, mask, failures = state
        key, shape_key, place_key = jax.random.split(key, 3)
        share, log_ratio = jax.random.uniform(shape_key, (2,))
        room = most - mask.sum()
        area = least + share * (room - least)  # room < least turns the interval round, as Python's uniform does
        ratio = jnp.exp((2.0 * log_ratio - 1.0) * -math.log(aspect))
        height, width = _round(jnp.sqrt(area * ratio)), _round(jnp.sqrt(area / ratio))
        new = _rectangle(place_key, grid, height, width) & ~mask
        good = (height < rows) & (width < columns) & (new.sum() > 0) & (new.sum() <= room)
        return key, mask | (new & good), jnp.where(good, 0, failures + 1)

    def unfinished(state):
        _, mask, failures = state
        return (mask.sum() < most) & (failures < 10)

    return jax.lax.while_loop(unfinished, attempt, (key, jnp.zeros(grid, bool), 0))[1]


def inverse_block(key, grid, *, masked, side=3, adjust=0.07):
    """Inverse block masking (data2vec 2.0, Baevski et al. 2022, section 3.3): blocks are kept, all else is masked.

    int(N (kept share + adjust) / side^2) squares of `side` patches around uniform centres, cut at the border, are kept; what is too much or
    too little for N - masked is removed or added at random.
    """
    rows, columns = grid
    _check(grid, masked)
    count = int(rows * columns * ((rows * columns - masked) / (rows * columns) + adjust) / side**2)
    centre_key, noise_key = jax.random.split(key)
    centres = jax.random.randint(centre_key, (count,), 0, rows * columns)  # with replacement, and they overlap: hence `adjust`
    row, column = (x[:, None] - side // 2 for x in jnp.divmod(centres, columns))
    down, across = jnp.arange(rows), jnp.arange(columns)
    inside = ((down >= row) & (down < row + side))[:, :, None] & ((across >= column) & (across < column + side))[:, None, :]
    return _top(jax.random.uniform(noise_key, grid) - inside.any(0), grid, masked)


def cells(key, grid, *, masked, side=2):
    """Whole cells of side x side patches, aligned to the grid, uniformly (SimMIM, Xie et al. 2021, section 3.2: 32-pixel cells).

    SimMIM masks ceil(0.6 x cells), so masked = side^2 x that. Raises UserError unless side divides the grid, and side^2 `masked`.
    """
    rows, columns = _divided(grid, side)
    _check(grid, masked)
    if masked % side**2:
        raise UserError(f"masked={masked} patches are no whole number of cells of {side} x {side}; give a multiple of {side**2}")
    draw_key, noise_key = jax.random.split(key)
    coarse = random(draw_key, (rows, columns), masked=masked // side**2)["mask"].reshape(rows, columns)
    return _top(jnp.kron(coarse, jnp.ones((side, side))) + jax.random.uniform(noise_key, grid), grid, masked)


def lattice(key, grid, *, side=2):
    """Grid-wise sampling: one patch of every side x side is kept, the same one in all (MAE, He et al. 2021, Figure 6: side 2, 75 % masked).

    Which one is drawn from the key. Raises UserError unless side divides the grid.
    """
    rows, columns = _divided(grid, side)
    draw_key, noise_key = jax.random.split(key)
    kept = jnp.zeros(side**2).at[jax.random.randint(draw_key, (), 0, side**2)].set(1.0).reshape(side, side)
    visible = jnp.tile(kept, (rows, columns))
    return _top(jax.random.uniform(noise_key, grid) - visible, grid, rows * columns * (side**2 - 1))


def tube(key, grid, *, frames, masked, draw=random):
    """The same mask in every frame (VideoMAE, Tong et al. 2022, section 3.3). Patches of frame t are t N + those of the grid.

    masked: patches of one frame; frames: after temporal patching. draw: the law within a frame.
    -> as ever, of frames x N patches; ids lie frame by frame.
    """
    one = draw(key, grid, masked=masked)
    count, keep = _patches(grid), _patches(grid) - masked
    frame = jnp.arange(frames, dtype=jnp.int32)[:, None]
    restore = one["ids_restore"][None]
    # Position in [all frames' kept, all frames' masked]
    restore = jnp.where(restore < keep, frame * keep + restore, frames * keep + frame * masked + restore - keep)
    ids = {name: (frame * count + one[name][None]).reshape(-1) for name in ("ids_keep", "ids_masked")}
    return {**ids, "mask": jnp.tile(one["mask"], frames), "ids_restore": restore.reshape(-1).astype(jnp.int32)}


# ------------------------------------------------------------------------------------------------------------ multi-block


def multi_block(key, grid, *, context, targets=4, target=None, target_scale=(0.15, 0.2), aspect=(0.75, 1.5), context_scale=(0.85, 1.0)):
    """I-JEPA's context and targets at fixed counts (Assran et al. 2023, section 3 and appendix A.1).

    The published code draws one block size a batch and cuts every context to the batch's shortest, from its end in row-major order:
    both counts change from step to step. Here they are given, and each example draws its own sizes.

    target: patches of a target, default the least scale's, int(target_scale[0] N). Block sizes with fewer do not occur; of a larger
    block the first `target` patches in row-major order are taken. context: patches of the context, drawn at random from the region
    (the code's cut would seldom leave any from the bottom); where the region has fewer, the rest come from patches outside the
    targets, and only when those are gone from the targets. At 14 x 14 the region has 80 patches on average; 48, about the least of a
    batch of 128, are there in 99 % of draws, and a target is touched in 1 of 5,000.

    -> ids_keep int32 (context,): the context. ids_masked int32 (targets, target). mask float32 (targets, N): 1 = in that target. No
    ids_restore: targets overlap, and some patches are in neither. Raises UserError for counts that the grid cannot give.
    """
    target = int(target_scale[0] * _patches(grid)) if target is None else target
    if not 0 < context <= _patches(grid):
        raise UserError(f"context={context} is not among 1 to {_patches(grid)}, the patches of a grid of {grid[0]} x {grid[1]}")
    scales = dict(target_scale=target_scale, aspect=aspect, context_scale=context_scale)
    draw_key, noise_key = jax.random.split(key)
    blocks, region = multi_block_regions(draw_key, grid, targets=targets, least=target, **scales)
    noise = jax.random.uniform(noise_key, grid) - region - ~blocks.any(0)
    ids_keep = jnp.argsort(noise.reshape(-1))[:context].astype(jnp.int32)
    ids_masked = jnp.argsort(~blocks.reshape(targets, -1), axis=1)[:, :target].astype(jnp.int32)  # stable: row-major
    mask = jnp.zeros((targets, _patches(grid)), jnp.float32).at[jnp.arange(targets)[:, None], ids_masked].set(1.0)
    return {"ids_keep": ids_keep, "ids_masked": ids_masked, "mask": mask}


def multi_block_regions(key, grid, *, targets=4, least=1, target_scale=(0.15, 0.2), aspect=(0.75, 1.5), context_scale=(0.85, 1.0)):
    """The regions themselves: target blocks bool (targets, rows, columns), all of one size, of `least` patches or more; context bool
    (rows, columns), a square block without the targets.

    A block of a share s of the N patches and aspect ratio a = height / width has round(sqrt(int(s N) a)) x round(sqrt(int(s N) / a))
    patches, each side at least one short of the grid. Blocks reach the last row and column; in the published code
    (`randint(0, rows - height)`, end excluded) they never do.
    """
    keys = jax.random.split(key, 3)
    height, width = _block_size(keys[0], grid, tuple(target_scale), tuple(aspect), least)
    blocks = jax.vmap(lambda k: _rectangle(k, grid, height, width))(jax.random.split(keys[1], targets))
    size_key, place_key = jax.random.split(keys[2])
    square = _rectangle(place_key, grid, *_block_size(size_key, grid, tuple(context_scale), (1.0, 1.0), 1))
    return blocks, square & ~blocks.any(0)


def _block_size(key, grid, scale, aspect, least):
    sizes, chances = _block_sizes(tuple(grid), scale, aspect, least)
    return jnp.asarray(sizes)[jax.random.choice(key, len(sizes), p=jnp.asarray(chances, jnp.float32))]


@functools.cache
def _block_sizes(grid, scale, aspect, least):
    """Every (height, width) that uniform shares in `scale` and ratios in `aspect` give, and its probability: by counting over a fine grid.

    A table, not a draw and its rounding: sizes under `least` leave it, so that none has to be drawn again.
    """
    middles = [low + (np.arange(n) + 0.5) / n * (high - low) for n, (low, high) in ((400, scale), (1000, aspect))]
    shares, ratios = np.meshgrid(*middles)
    area = np.floor(_patches(grid) * shares)
    sides = np.stack([np.round(np.sqrt(area * ratios)), np.round(np.sqrt(area / ratios))], -1).reshape(-1, 2)
    sizes, counts = np.unique(np.minimum(sides, np.array(grid) - 1).astype(np.int32), axis=0, return_counts=True)
    enough = sizes.prod(1) >= max(least, 1)
    if not enough.any():
        raise UserError(
            f"no block of {least} patches: on a grid of {grid[0]} x {grid[1]}, scale={scale} and aspect={aspect} give "
            f"{sizes.prod(1).min()} to {sizes.prod(1).max()}; ask for fewer or for a larger scale"
        )
    return sizes[enough], counts[enough] / counts[enough].sum()


# ---------------------------------------------------------------------------------------------------------------- shared


def _top(noise, grid, masked):
    """`losses.random_masking` of one example, at an exact count: the `masked` patches of greatest noise."""
    _check(grid, masked)
    count = _patches(grid)
    # Half a patch to either side of a whole number: no rounding can change the count.
    noise = noise.reshape(1, count)
    ids_keep, mask, ids_restore = random_masking(noise, (masked - 0.5) / count)
    ids_masked = jnp.argsort(noise, axis=1)[:, count - masked :]  # the sort inside random_masking: the compiler runs it once
    ids = {"ids_keep": ids_keep, "ids_masked": ids_masked, "ids_restore": ids_restore}
    return {"mask": mask[0], **{name: x[0].astype(jnp.int32) for name, x in ids.items()}}


def _rectangle(key, grid, height, width):
    """bool (rows, columns): a height x width block, its corner uniform over where it fits."""
    rows, columns = grid
    room = jnp.maximum(jnp.stack([rows - height, columns - width]), 0)
    top, left = jax.random.randint(key, (2,), 0, room + 1)
    down, across = jnp.arange(rows), jnp.arange(columns)
    return ((down >= top) & (down < top + height))[:, None] & ((across >= left) & (across < left + width))[None, :]


def _touching(mask):
    """bool (rows, columns): the four neighbours of masked patches (and masked ones beside masked ones)."""
    padded = jnp.pad(mask, 1)
    return padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def _round(x):
    return jnp.round(x).astype(jnp.int32)  # half to even, as Python's round


def _patches(grid):
    rows, columns = grid
    return rows * columns


def _check(grid, masked):
    if not 0 < masked < _patches(grid):
        raise UserError(f"masked={masked} is not among 1 to {_patches(grid) - 1}: a grid of {grid[0]} x {grid[1]} keeps at least one patch")


def _divided(grid, side):
    if grid[0] % side or grid[1] % side:
        raise UserError(f"side={side} does not divide the grid, {grid[0]} x {grid[1]} patches")
    return grid[0] // side, grid[1] // side
