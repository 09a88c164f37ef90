"""What the models do on a GPU alone, as far as it can be told without one: what is traced there, and numerics of its own forms."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from ssljax import metrics
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
