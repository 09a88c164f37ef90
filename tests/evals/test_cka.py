import numpy as np
import pytest

from ssljax.evals.cka import linear_cka

pytestmark = pytest.mark.quick


def test_a_rotation_a_scale_and_a_shift_change_nothing():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 6))
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    assert linear_cka(x, rng.normal(size=(30, 6))) < 0.5


def test_few_rows_or_many_the_number_is_the_same():
    x, y = np.random.default_rng(0).normal(size=(2, 5, 8))
    x_, y_ = x - x.mean(0), y - y.mean(0)
    norm = lambda a, b: np.linalg.norm(a.T @ b)  # noqa: E731
    assert linear_cka(x, y) == pytest.approx(norm(x_, y_) ** 2 / norm(x_, x_) / norm(y_, y_))
