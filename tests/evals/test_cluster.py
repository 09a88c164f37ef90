import numpy as np
import pytest

from ssljax.evals import Context, NotApplicable, cluster

pytestmark = pytest.mark.quick


def test_agreement_of_small_tables():
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert cluster.agreement(labels, 1 - labels) == dict.fromkeys(cluster.agreement(labels, labels), pytest.approx(1))
    one = cluster.agreement(labels, np.zeros(6, int))
    assert (one["acc"], one["purity"], one["nmi"], one["ari"]) == (0.5, 0.5, 0, 0)
    apart = cluster.agreement(labels, np.arange(6))  # only one cluster may stand for a class, but any may be pure
    assert apart["acc"] == pytest.approx(2 / 6) and apart["purity"] == 1 == pytest.approx(apart["homogeneity"])


def test_k_means_finds_classes_that_lie_apart():
    labels = np.arange(60) % 3
    features = (10 * np.eye(3)[labels] + np.random.default_rng(0).normal(size=(60, 3))).astype(np.float32)
    found = cluster.run(Context({}, {"features": features, "label": labels}, classes=3))
    assert found["cluster_acc"] == found["cluster_nmi"] == pytest.approx(1)
    with pytest.raises(NotApplicable):
        cluster.run(Context({}, {"features": features}, classes=3))
