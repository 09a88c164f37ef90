"""The streaming core: every loss on any mesh is its own definition; exact, small, and as cheap as it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ssljax import losses, sharding
from ssljax.errors import UserError
from ssljax.losses import pairs, streaming
from ssljax.metrics import count_flops

BATCH, WIDTH = 24, 6


def mesh_of(**sizes):
    count = int(np.prod(list(sizes.values())))
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=jax.devices()[:count])


def unit(rows, seed, width=WIDTH):
    z = np.random.default_rng(seed).normal(size=(rows, width))
    return jnp.asarray(z / np.linalg.norm(z, axis=1, keepdims=True), jnp.float32)


X, Y, U, V = (unit(BATCH, seed) for seed in range(4))
LABELS = jnp.asarray(np.random.default_rng(4).integers(0, 7, BATCH), jnp.int32)
SOFT = jax.nn.softmax(3 * unit(BATCH, 5, 4))
QUEUE = unit(40, 6)  # eight devices divide it
RAGGED_QUEUE = unit(37, 7)
PATCHES, SENTENCES = unit(BATCH * 5, 8).reshape(BATCH, 5, WIDTH), unit(BATCH * 4, 9).reshape(BATCH, 4, WIDTH)
WORDS = jnp.asarray(np.arange(4) < np.random.default_rng(10).integers(1, 5, (BATCH, 1)))
SCALE, BIAS = jnp.float32(9.0), jnp.float32(-3.0)

OBJECTS = [LABELS.reshape(6, 4) % 3, LABELS.reshape(6, 4) // 3]


def regions(views):
    return [z.reshape(6, 4, -1) for z in views]


# name: (loss of differentiable arguments and impl, those arguments)
LOSSES = {
    "clip_softmax": (losses.clip_softmax, (X, Y, SCALE)),
    "unicl": (lambda x, y, scale, impl: losses.unicl(x, y, LABELS, scale, impl=impl), (X, Y, SCALE)),
    "filip": (lambda x, y, scale, impl: losses.filip(x, y, WORDS, scale, impl=impl), (PATCHES, SENTENCES, SCALE)),
    "distill_clip": (losses.distill_clip, (X, Y, SCALE, U, V, jnp.float32(5.0))),
    "info_nce": (lambda q, k, t, impl: losses.info_nce(q, k, temperature=t, impl=impl), (X, Y, 1 / SCALE)),
    "info_nce, constant keys": (lambda q, impl: losses.info_nce(q, Y, temperature=0.2, impl=impl), (X,)),
    "info_nce, queue": (lambda q, k, n, impl: losses.info_nce(q, k, queue=n, temperature=0.2, impl=impl), (X, Y, QUEUE)),
    "info_nce, constant queue": (lambda q, impl: losses.info_nce(q, Y, queue=RAGGED_QUEUE, temperature=0.2, impl=impl), (X,)),
    "moco_v3": (lambda a, b, impl: losses.moco_v3(a, b, U, V, temperature=0.2, impl=impl), (X, Y)),
    "nt_xent": (lambda a, b, t, impl: losses.nt_xent(a, b, temperature=t, impl=impl), (X, Y, 1 / SCALE)),
    "dcl": (lambda a, b, impl: losses.dcl(a, b, temperature=0.2, impl=impl), (X, Y)),
    "dclw": (lambda a, b, impl: losses.dcl(a, b, temperature=0.2, sigma=0.5, impl=impl), (X, Y)),
    "supcon": (lambda z, impl: losses.supcon(z, LABELS, temperature=0.2, impl=impl), (X,)),
    "supcon, anchors": (lambda z, impl: losses.supcon(z, LABELS, temperature=0.2, anchors=16, impl=impl), (X,)),
    "multi_positive": (lambda z, impl: losses.multi_positive(z, LABELS, temperature=0.2, impl=impl), (X,)),
    "pair_nt_xent": (lambda z, impl: losses.pair_nt_xent(z, LABELS, temperature=0.2, impl=impl), (X,)),
    "macl": (lambda a, b, impl: losses.macl(a, b, temperature=0.2, alignment=0.3, impl=impl), (X, Y)),
    "nnclr": (lambda p, impl: losses.nnclr(X, p, QUEUE, temperature=0.2, impl=impl), (Y,)),
    "ressl": (lambda q, impl: losses.ressl(q, Y, QUEUE, student_temperature=0.1, teacher_temperature=0.05, impl=impl), (X,)),
    "detcon": (lambda *z, impl: losses.detcon(regions(z[:2]), regions(z[2:]), OBJECTS, temperature=0.2, impl=impl), (X, Y, U, V)),
    "koleo": (lambda z, impl: losses.koleo(z, impl=impl), (X,)),
    "koleo, equal rows": (lambda z, impl: losses.koleo(jnp.concatenate([z[:8]] * 3), impl=impl), (X,)),  # the first of the nearest counts
    "uniformity": (lambda z, impl: losses.uniformity(z, t=3.0, impl=impl), (X,)),
    "siglip": (losses.siglip, (X, Y, SCALE, BIAS)),
    "siglip, labels": (lambda x, y, s, b, impl: losses.siglip(x, y, s, b, labels=LABELS, impl=impl), (X, Y, SCALE, BIAS)),
    "siglip, soft": (lambda x, y, s, b, impl: losses.siglip(x, y, s, b, targets=SOFT, impl=impl), (X, Y, SCALE, BIAS)),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 5 rows: several a device, the last one ragged."""
    monkeypatch.setattr(streaming, "BLOCK", 5)
    monkeypatch.setattr(streaming, "SETS_BLOCK", 25)


@functools.cache
def dense(name):
    loss, args = LOSSES[name]
    return jax.jit(jax.value_and_grad(functools.partial(loss, impl="dense"), tuple(range(len(args)))))(*args)


def check(name, impl, mesh=None):
    loss, args = LOSSES[name]
    function = jax.jit(jax.value_and_grad(functools.partial(loss, impl=impl), tuple(range(len(args)))))
    if mesh is None:
        got = function(*args)
    else:
        with jax.set_mesh(mesh):
            got = function(*args)
    expected = jax.tree.leaves(dense(name))
    for part, (g, e) in enumerate(zip(jax.tree.leaves(got), expected, strict=True)):
        assert g.dtype == jnp.float32
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-5 * float(jnp.abs(e).max()) + 1e-9, err_msg=f"{name}, output {part}")


@pytest.mark.parametrize("impl", ["stream", pytest.param("auto", marks=pytest.mark.quick)])
@pytest.mark.parametrize("name", LOSSES)
def test_streamed_is_dense_on_one_device(name, impl, small_blocks):
    check(name, impl)


@pytest.mark.parametrize("name", LOSSES)
def test_streamed_on_eight_devices_is_dense_on_one(name):
    check(name, "stream", mesh_of(data=4, fsdp=2))


@pytest.mark.parametrize("name", ["clip_softmax", "nt_xent", "siglip", "info_nce, queue", "koleo", "filip"])
@pytest.mark.parametrize("sizes", [{"data": 2}, {"data": 3}, {"data": 4}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_any_mesh(name, sizes, small_blocks):
    check(name, "stream", mesh_of(**sizes))


@pytest.mark.parametrize("name", ["clip_softmax", "siglip", "info_nce, constant keys", "distill_clip", "koleo", "filip"])
def test_the_grid_is_the_ring(name, small_blocks):
    check(name, "grid", mesh_of(data=8))


@pytest.mark.parametrize("name", ["clip_softmax", "nt_xent", "siglip", "info_nce, constant keys", "distill_clip", "koleo", "filip"])
def test_small_batches_are_gathered_and_their_logits_kept(name, small_blocks):
    check(name, "auto", mesh_of(data=8))


@pytest.mark.parametrize("schedule", [1, 2])
def test_kept_logits_travel_with_nothing(schedule, small_blocks, monkeypatch):
    monkeypatch.setattr(pairs, "choose", lambda *_, **__: (True, schedule))
    check("clip_softmax", "auto", mesh_of(data=8))


def test_one_row_a_device():
    x, y, mesh = X[:8], Y[:8], mesh_of(data=8)
    clip, siglip = functools.partial(losses.clip_softmax, logit_scale=100.0), functools.partial(losses.siglip, logit_scale=9.0, bias=-3.0)
    for loss in (clip, siglip):
        with jax.set_mesh(mesh):
            got = jax.jit(jax.value_and_grad(functools.partial(loss, impl="stream"), (0, 1)))(x, y)
        expected = jax.value_and_grad(functools.partial(loss, impl="dense"), (0, 1))(x, y)
        jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-6), got, expected)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_mesh_may_be_that_of_the_arrays(kind):
    """Outside of set_mesh, under jit, sharded arrays say where they are, and the ring runs there."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    x, y = (jax.device_put(a, NamedSharding(mesh, PartitionSpec("data"))) for a in (X, Y))
    loss = jax.jit(jax.value_and_grad(lambda a, b: losses.clip_softmax(a, b, SCALE, impl="stream"), (0, 1)))
    assert "ppermute" in str(loss.trace(x, y).jaxpr)
    got, expected = loss(x, y), dense("clip_softmax")
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    for g, e in zip(got[1], expected[1][:2], strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-7)


def test_eagerly_on_the_devices_of_the_arrays():
    sharding = NamedSharding(mesh_of(data=2), PartitionSpec("data"))
    x, y = jax.device_put(X, sharding), jax.device_put(Y, sharding)
    assert streaming.layout_of(x, y).size == 2
    np.testing.assert_allclose(losses.clip_softmax(x, y, SCALE, impl="stream"), dense("clip_softmax")[0], rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------ exactness
def definitions():
    """The three families in float64, from their papers' formulas."""

    def clip(x, y, scale):
        logits = scale * x @ y.T
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, 0)) + jnp.diagonal(jax.nn.log_softmax(logits, 1))) / 2

    def nt_xent(x, y, scale):
        z = jnp.concatenate([x, y])
        logits = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, scale * z @ z.T)
        return -jnp.mean(jax.nn.log_softmax(logits, 1)[jnp.arange(len(z)), jnp.roll(jnp.arange(len(z)), len(x))])

    def siglip(x, y, scale):
        logits = scale * x @ y.T - 5.0
        return jnp.sum(jax.nn.softplus(jnp.where(jnp.eye(len(x), dtype=bool), -logits, logits))) / len(x)

    return {"clip": clip, "nt_xent": nt_xent, "siglip": siglip}


OURS = {
    "clip": losses.clip_softmax,
    "nt_xent": lambda x, y, scale, impl: losses.nt_xent(x, y, temperature=1 / scale, impl=impl),
    "siglip": lambda x, y, scale, impl: losses.siglip(x, y, scale, -5.0, impl=impl),
}


def case(kind, rows=96, width=32):
    x, y, scale = unit(rows, 10, width), unit(rows, 11, width), 10.0
    if kind == "converged":
        y, scale = unit(rows, 10, width) + 0.02 * y, 60.0
    if kind == "duplicates":
        x, y = jnp.tile(x[: rows // 4], (4, 1)), jnp.tile(y[: rows // 4], (4, 1))
    if kind == "identical":
        x, y = jnp.tile(x[:1], (rows, 1)), jnp.tile(x[:1], (rows, 1))
    if kind == "sharp":
        scale = 100.0
    if kind == "ragged":
        x, y = x[:83], y[:83]
    return x, losses.normalise(y), jnp.float32(scale)


def errors(got, exact):
    """Largest error of the loss and of each gradient, relative to the largest entry."""
    pairs_ = zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True)
    return [float(np.max(np.abs(np.asarray(g, np.float64) - e)) / max(np.max(np.abs(e)), 1e-300)) for g, e in pairs_]


@functools.cache
def exact(name, kind, dtype):
    args = jax.tree.map(lambda a: np.asarray(a.astype(dtype) if a.ndim else a, np.float64), case(kind))
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(definitions()[name], (0, 1, 2)))(*args))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["random", "converged", "duplicates", "sharp", "ragged", "identical"])
@pytest.mark.parametrize("name", OURS)
def test_no_less_exact_than_dense(name, kind, dtype, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 32)
    x, y, scale = case(kind)
    args = x.astype(dtype), y.astype(dtype), scale
    truth = exact(name, kind, dtype)
    if kind == "converged" and dtype == "float32":
        assert truth[0] < 0.01 or name == "siglip"
    found = {}
    for impl in ("dense", "stream", "auto"):
        got = jax.jit(jax.value_and_grad(functools.partial(OURS[name], impl=impl), (0, 1, 2)))(*args)
        assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(got))
        found[impl] = errors(got, truth)
    floor = 1e-5 if dtype == "float32" else 2**-8  # bfloat16 gradients are rounded to it once
    if kind == "identical":  # gradients of nothing but rounding: finite is all that can be asked
        return
    for impl in ("stream", "auto"):
        for part, (ours, theirs) in enumerate(zip(found[impl], found["dense"], strict=True)):
            assert ours <= max(floor, 1.5 * theirs), (impl, part, ours, theirs)


def test_double_precision_is_the_definition():
    """The algebra of the blocks, without rounding to hide behind."""
    x, y, scale = (np.asarray(a, np.float64) for a in case("random"))
    with jax.enable_x64(True):
        for name, definition in definitions().items():
            expected = jax.value_and_grad(definition, (0, 1, 2))(x, y, scale)
            got = jax.jit(jax.value_and_grad(functools.partial(OURS[name], impl="stream"), (0, 1, 2)))(*map(jnp.asarray, (x, y, scale)))
            assert max(errors(got, jax.tree.map(np.asarray, expected))) < 1e-12, name


# ------------------------------------------------------------------------------------------------------------------ cost
def shapes(mesh, batch, width, dtype="float32"):
    split, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (["data"], []))
    rows = jax.ShapeDtypeStruct((batch, width), dtype, sharding=split)
    return rows, jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)


COSTS = {  # loss of (x, y, scale); what is differentiated; FLOPs of one matrix of logits, in units of 2 B B D
    "clip": (losses.clip_softmax, (0, 1, 2), 1),
    "siglip": (lambda x, y, s, impl: losses.siglip(x, y, s, -10.0, impl=impl), (0, 1, 2), 1),
    "nt_xent": (lambda x, y, s, impl: losses.nt_xent(x, y, temperature=0.1, impl=impl), (0, 1), 4),
    "moco": (lambda x, y, s, impl: losses.info_nce(x, x, queue=y, temperature=0.2, impl=impl), (0,), 1),
    "moco_v3": (lambda x, y, s, impl: losses.info_nce(x, y, temperature=0.2, impl=impl), (0,), 1),
}


def program(name, mesh, batch, width, impl):
    loss, wanted, _ = COSTS[name]
    rows, scalar = shapes(mesh, batch, width)
    out = (scalar.sharding, tuple((rows.sharding, rows.sharding, scalar.sharding)[i] for i in wanted))
    return jax.jit(jax.value_and_grad(functools.partial(loss, impl=impl), wanted), out_shardings=out), (rows, rows, scalar)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    "name, impl, most",
    [("clip", "stream", 4.0), ("siglip", "stream", 3.0), ("nt_xent", "stream", 2.15), ("moco", "stream", 2.0), ("moco_v3", "auto", 2.0),
     ("clip", "grid", 4.0)],
)  # fmt: skip
def test_matrix_products(name, impl, most, devices):
    mesh = mesh_of(data=devices)
    with jax.set_mesh(mesh):
        function, args = program(name, mesh, 65536, 512, impl)
        unit_ = 2 * 65536**2 * 512 * COSTS[name][2]
        assert count_flops(function, *args) / unit_ <= most * (1 + 1e-9)


@pytest.mark.parametrize("devices", [1, 8])
def test_what_patches_and_words_cost(devices):
    """Four products of all patches and words, with the gradients, and a block of them in memory."""
    mesh, sizes = mesh_of(data=devices), ((2048, 16, 64), (2048, 8, 64))
    split, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (["data"], []))
    args = [jax.ShapeDtypeStruct(size, jnp.float32, sharding=split) for size in sizes]
    args += [jax.ShapeDtypeStruct((2048, 8), bool, sharding=split), jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)]
    with jax.set_mesh(mesh):
        function = jax.jit(jax.value_and_grad(losses.filip, (0, 1, 3)), out_shardings=(whole, (split, split, whole)))
        assert count_flops(function, *args) == 4 * 2 * (2048 * 16) * (2048 * 8) * 64
        held = function.lower(*args).compile().memory_analysis().temp_size_in_bytes
    assert held <= 4.5 * 2048 // devices * 16 * 64 * 4 + 5 * streaming.SETS_BLOCK**2 * 4


def test_kept_logits_save_a_product_and_a_loss_alone_is_one():
    mesh = mesh_of(data=8)
    with jax.set_mesh(mesh):
        for name, most in (("clip", 3.0), ("nt_xent", 1.6)):
            function, args = program(name, mesh, 4096, 512, "auto")
            assert count_flops(function, *args) <= most * 2 * 4096**2 * 512 * COSTS[name][2] * (1 + 1e-9)
        for name in ("clip", "siglip"):
            alone = jax.jit(functools.partial(COSTS[name][0], impl="stream"))
            assert count_flops(alone, *args) == 2 * 4096**2 * 512


@pytest.mark.parametrize(
    "name, devices, most",
    [("clip", 8, 63), ("siglip", 8, 57), ("clip", 1, 145), ("siglip", 1, 145), ("nt_xent", 1, 12), ("nt_xent", 8, 168)],
)
def test_memory_at_a_batch_of_65536(name, devices, most):
    """Temporary MiB a device, from the compiler. NT-Xent has 2 B rows; on several devices its accumulators are no output until the ring is
    over."""
    mesh = mesh_of(data=devices)
    with jax.set_mesh(mesh):
        function, args = program(name, mesh, 65536, 512, "stream")
        mib = function.lower(*args).compile().memory_analysis().temp_size_in_bytes / 2**20
    assert mib <= most
    if name != "nt_xent":
        assert mib * 2**20 <= 4.5 * 65536 // devices * 512 * 4 + 4 * streaming.BLOCK**2 * 4


def test_memory_does_not_grow_with_the_devices():
    figures = []
    for devices in (2, 4, 8):
        mesh = mesh_of(data=devices)
        with jax.set_mesh(mesh):
            function, args = program("clip", mesh, 4096 * devices, 256, "stream")
            figures.append(function.lower(*args).compile().memory_analysis().temp_size_in_bytes)
    two, four, eight = figures
    assert abs(eight - four) <= 0.02 * four and two <= four  # two devices have no third to pass anything on to


# ---------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.quick
def test_what_cannot_be_is_named():
    with pytest.raises(UserError, match="'ring'.*'dense', 'stream', 'grid'"):
        losses.clip_softmax(X, Y, 1.0, impl="ring")
    with jax.set_mesh(mesh_of(data=4, fsdp=2)), pytest.raises(UserError, match="12 rows do not divide over the 8 .* data=4, fsdp=2"):
        losses.clip_softmax(X[:12], Y[:12], 1.0)
    with jax.set_mesh(mesh_of(data=8)), pytest.raises(UserError, match="take a batch of 8"):
        losses.nt_xent(X[:5], Y[:5], temperature=1.0)


@pytest.mark.quick
def test_budget_decides_what_is_kept(monkeypatch):
    assert pairs.choose("auto", 16384, 16384, 512, jnp.float32, None, False) == (True, 1)  # 1 GiB, exactly a CPU's budget
    assert pairs.choose("auto", 16385, 16384, 512, jnp.float32, None, False) == (False, 1)
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    assert pairs.choose("auto", 4096, 4096, 512, jnp.float32, None, False) == (True, 1)  # 64 MiB, exactly the budget
    assert pairs.choose("auto", 4097, 4096, 512, jnp.float32, None, False) == (False, 1)
    assert pairs.choose("stream", 8, 8, 8, jnp.float32, None, False) == (False, 1)
    eight = streaming.Layout(mesh_of(data=8), ("data",))
    assert pairs.choose("auto", 16384, 16384, 512, jnp.float32, eight, False) == (False, "gather")  # 2 * 32 MiB
    assert pairs.choose("auto", 16392, 16392, 512, jnp.float32, eight, False) == (False, 1)
