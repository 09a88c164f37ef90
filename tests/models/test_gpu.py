"""What the models do on a GPU alone, as far as it can be told without one: what is traced there, and numerics of its own forms."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from ssljax import metrics, models, sharding
from ssljax.models import transformer, vit
from ssljax.models.attend import attend
from tests.conftest import equations

FLASH = {"forward": "dot_product_attention_fwd_wrapper", "backward": "dot_product_attention_bwd_wrapper"}


@pytest.fixture
def gpu(monkeypatch):
    """A GPU, for what traces a function: it cannot be run."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91400)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)


def gradient_of_vit(side, remat="none", **fields):
    """The jaxpr of a small ViT's gradient: (side / 8)^2 patches and a class token."""
    fields = {"width": 64, "depth": 3, "heads": 2, "mlp_dim": 64, "dtype": "bfloat16", **fields}
    model = vit.ViT(image_size=side, patch_size=8, remat=remat, **fields)
    images = jnp.zeros((2, side, side, 3))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    loss = lambda params: model.apply(params, images, train=True)["pooled"].astype(jnp.float32).sum()  # noqa: E731
    return jax.make_jaxpr(jax.grad(loss))(params).jaxpr


@pytest.mark.parametrize("remat, forward", [("none", 1), ("dots", 1), ("full", 2)])
def test_flash_attention_of_an_odd_length_and_what_rematerialisation_keeps_of_it(gpu, remat, forward):
    found = [e for e in equations(gradient_of_vit(64, remat)) if e.primitive.name in FLASH.values()]
    count = collections.Counter(e.primitive.name for e in found)
    assert count == {FLASH["forward"]: forward, FLASH["backward"]: 1}  # in the body of a loop over the blocks
    assert {e.invars[0].aval.shape for e in found} == {(2, 66, 2, 32)}  # of 65 tokens


@pytest.mark.parametrize("platform, depth, remat, unroll", [
    ("gpu", 4, "none", 4), ("cpu", 4, "none", 4), ("tpu", 4, "none", 1), ("tpu", 3, "none", 3), ("tpu", 3, "dots", 1),
])  # fmt: skip
def test_how_blocks_are_laid_out_is_the_meshs_platforms_affair(platform, depth, remat, unroll):
    """And not that of JAX's own devices: a plan is made for a mesh of chips that are not there."""
    device = jax.sharding.AbstractDevice(platform, 1, platform)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)):
        program = gradient_of_vit(32, remat, dtype="float32", depth=depth)
        loops = [e.params for e in equations(program) if e.primitive.name == "scan"]
    assert {params["unroll"] for params in loops if params["length"] == depth} == {unroll}


@pytest.mark.parametrize(
    "fields", [{"dtype": "float32"}, {"position": "relative"}, {"heads": 1, "width": 256}, {"class_token": False, "pool": "gap"}]
)
def test_what_flash_attention_does_not_take_or_64_tokens_is_left_to_the_compiler(gpu, fields):
    assert not any(e.primitive.name in FLASH.values() for e in equations(gradient_of_vit(64, **fields)))


def test_flash_attention_counts_as_many_flops_as_what_it_takes_the_place_of(gpu, monkeypatch):
    q = jax.ShapeDtypeStruct((2, 66, 3, 32), jnp.bfloat16)
    loss = lambda q, k, v: attend(q, k, v).astype(jnp.float32).sum()  # noqa: E731
    flash = metrics.count_flops(jax.value_and_grad(loss, (0, 1, 2)), q, q, q)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert flash == metrics.count_flops(jax.value_and_grad(loss, (0, 1, 2)), q, q, q) == 6 * 2 * 2 * 3 * 66 * 66 * 32


@pytest.mark.parametrize("backend, dtype, error", [("gpu", "bfloat16", 2**-8), ("cpu", "bfloat16", 2**-8), ("cpu", "float32", 2e-6)])
def test_gelu_and_its_slope_are_as_exact_as_their_dtype(monkeypatch, backend, dtype, error):
    x = jnp.concatenate([jnp.linspace(-9, 9, 20_001), jnp.array([0.0, -200.0, 200.0, -1e18, 1e18])]).astype(dtype)
    exact = np.asarray(x, np.float64)
    normal = np.array([0.5 * math.erfc(-z / math.sqrt(2)) for z in exact])
    density = np.exp(-0.5 * np.minimum(exact**2, 1e3)) / math.sqrt(2 * math.pi)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    value, pull = jax.vjp(transformer.gelu, x)
    wanted, slope = exact * normal, normal + np.clip(exact, -50, 50) * density
    quick = 4e-4 * (backend == "gpu")
    np.testing.assert_allclose(np.asarray(value, np.float64), wanted, rtol=error + quick, atol=1e-8)
    np.testing.assert_allclose(np.asarray(pull(jnp.ones_like(x))[0], np.float64), slope, rtol=error, atol=1e-6 + quick)


def test_where_tokens_lie_is_said_to_the_compiler_on_each_device_for_itself(gpu):
    """A constraint of what is spread over devices would gather it; and the gradient is that of nothing done."""
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, batch=8)
    x, weight = (jax.random.normal(jax.random.key(i), (8, 5, 16)) for i in range(2))
    split = jax.sharding.NamedSharding(mesh, sharding.BATCH)
    loss = lambda x: (models.as_indexed(x) * weight).sum()  # noqa: E731
    assert sum(e.primitive.name == "layout_constraint" for e in equations(jax.make_jaxpr(jax.grad(loss))(x).jaxpr)) == 2
    with pytest.MonkeyPatch.context() as patch, jax.set_mesh(mesh):
        patch.setattr(sharding, "platform", lambda: "gpu")
        step = jax.jit(jax.value_and_grad(loss), in_shardings=split).lower(x).compile()
    assert "all-gather" not in step.as_text()
    value, slope = step(jax.device_put(x, split))
    np.testing.assert_allclose(value, (x * weight).sum(), rtol=1e-5)
    np.testing.assert_array_equal(slope, weight)


def test_a_bias_of_several_axes_is_added_apart_from_its_product(gpu):
    made = {e.invars[0].aval.shape for e in equations(gradient_of_vit(64)) if e.primitive.name == "optimization_barrier"}
    assert (2, 65, 3, 2, 32) in made


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "quick_gelu", "silu"])
@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_an_activation_keeps_its_input_alone_and_has_the_definitions_slope(name, backend, monkeypatch):
    sigmoid, tanh = lambda z: 1 / (1 + np.exp(-z)), np.tanh
    defined = {
        "gelu": lambda z: z * np.array([0.5 * math.erfc(-each / math.sqrt(2)) for each in z]),
        "gelu_tanh": lambda z: 0.5 * z * (1 + tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
        "quick_gelu": lambda z: z * sigmoid(1.702 * z), "silu": lambda z: z * sigmoid(z),
    }[name]  # fmt: skip
    monkeypatch.setattr(sharding, "platform", lambda: backend)
    x, step = np.linspace(-6, 6, 301), 1e-5
    value, pull = jax.vjp(transformer.ACTIVATIONS[name], jnp.float32(x))
    assert [leaf.size for leaf in jax.tree.leaves(pull) if leaf.size > 1] == [x.size]
    np.testing.assert_allclose(value, defined(x), atol=2e-6)
    np.testing.assert_allclose(pull(jnp.ones(x.shape))[0], (defined(x + step) - defined(x - step)) / (2 * step), atol=5e-6)
