"""Self-distillation against a loop over pairs of crops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import losses
from ssljax.errors import UserError

pytestmark = pytest.mark.quick


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("views, crops", [(2, 2), (2, 6), (1, 3), (3, 4)])
def test_dino(views, crops):
    rng = np.random.default_rng(views)
    student, teacher, centre = rng.normal(size=(crops, 4, 9)), rng.normal(size=(views, 4, 9)), rng.normal(size=9)
    pairs = []
    for g in range(views):
        q = softmax((teacher[g] - centre) / 0.05)
        pairs += [-np.mean(np.sum(q * np.log(softmax(student[v] / 0.1)), -1)) for v in range(crops) if v != g]
    arrays = [jnp.asarray(a, jnp.float32) for a in (student, teacher, centre)]
    temperatures = dict(student_temperature=0.1, teacher_temperature=0.05)
    np.testing.assert_allclose(losses.dino(*arrays, **temperatures), np.mean(pairs), rtol=1e-5)
    assert not jax.grad(lambda t: losses.dino(arrays[0], t, arrays[2], **temperatures))(arrays[1]).any()


def test_dino_without_pairs():
    x = jnp.zeros((1, 2, 3))
    with pytest.raises(UserError, match="two crops"):
        losses.dino(x, x, jnp.zeros(3), student_temperature=0.1, teacher_temperature=0.1)


def test_update_centre():
    rng = np.random.default_rng(0)
    centre, teacher = rng.normal(size=5), rng.normal(size=(2, 3, 5))
    expected = 0.9 * centre + 0.1 * teacher.reshape(6, 5).mean(0)
    got = losses.update_centre(jnp.asarray(centre, jnp.float32), jnp.asarray(teacher, jnp.bfloat16), jnp.float32(0.9))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=1e-3)  # the teacher came in bfloat16


def test_entropy():
    logits = np.random.default_rng(0).normal(size=(3, 4, 7))
    p = softmax(logits)
    got = losses.entropy(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(got, -(p * np.log(p)).sum(-1), rtol=1e-5)
    mean = p.reshape(-1, 7).mean(0)
    got = losses.entropy_of_mean(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(got, -(mean * np.log(mean)).sum(), rtol=1e-5)
    # The two ways to collapse, told apart: all on one output, and the same on all; and a healthy spread over outputs.
    one, spread = jnp.log(jnp.eye(8)[jnp.zeros(8, int)]), 1e3 * jnp.eye(8)
    assert losses.entropy(one).max() == 0 and losses.entropy_of_mean(one) == 0
    np.testing.assert_allclose(losses.entropy(jnp.zeros((8, 8))), np.log(8), rtol=1e-6)
    assert losses.entropy(spread).max() < 1e-6
    np.testing.assert_allclose(losses.entropy_of_mean(spread), np.log(8), rtol=1e-6)


def test_across_crops_of_others():
    rng = np.random.default_rng(0)
    q, student = softmax(rng.normal(size=(2, 4, 5))), rng.normal(size=(3, 4, 5))
    expected = np.mean([-np.mean(np.sum(q[g] * np.log(softmax(student[v] / 0.1)), -1)) for g in range(2) for v in range(3)])
    f32 = [jnp.asarray(a, jnp.float32) for a in (q, student)]
    np.testing.assert_allclose(losses.across_crops(*f32, temperature=0.1, pairs="all"), expected, rtol=1e-5)
    with pytest.raises(UserError, match="'all'"):
        losses.across_crops(*f32, temperature=0.1, pairs="some")


def test_targets_are_constant():
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(4, 5)), jnp.float32) for _ in range(2))
    mask = jnp.ones((4,))

    def every(target):
        q = jax.nn.softmax(target)
        regressed = losses.byol(x, x, target, target) + losses.simsiam(x, x, target, target)
        ressl = losses.ressl(x, target, target, student_temperature=0.1, teacher_temperature=0.1, impl="dense")
        return (
            regressed + ressl + losses.ibot(x, q, mask, temperature=0.1) + losses.across_crops(q[None], x[None], temperature=1, pairs="all")
        )

    assert not jax.jit(jax.grad(every))(y).any()


def test_koleo_is_finite_where_features_are_equal():
    for z in (jnp.ones((6, 4)), jnp.zeros((6, 4))):
        value, gradient = jax.jit(jax.value_and_grad(losses.koleo))(z)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_gram():
    """Of unit vectors, image by image; the teacher is constant."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 3, 5, 7)), rng.normal(size=(2, 3, 5, 7))
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (student, teacher)]
    products = [x @ np.swapaxes(x, -1, -2) for x in unit]
    arrays = [jnp.asarray(x, jnp.float32) for x in (student, teacher)]
    np.testing.assert_allclose(losses.gram(*arrays), np.mean((products[0] - products[1]) ** 2), rtol=1e-5)
    assert not jax.grad(losses.gram, argnums=1)(*arrays).any()
    np.testing.assert_allclose(losses.gram(arrays[0], 3 * arrays[0]), 0, atol=1e-10)


def test_feature_std_is_one_on_the_sphere_and_zero_where_all_point_one_way():
    z = jax.random.normal(jax.random.key(0), (4000, 2, 16))
    np.testing.assert_allclose(losses.feature_std(z), 1, atol=0.02)
    np.testing.assert_allclose(losses.feature_std(jnp.ones((8, 16)) * jnp.arange(1, 9)[:, None]), 0, atol=1e-5)
