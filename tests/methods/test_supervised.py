"""Mixup and CutMix of a supervised run: the loss of mixed pictures is the mixed loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import losses
from ssljax.methods.supervised import Supervised
from ssljax.models.resnet import ResNet

ENCODER = ResNet(stages=(1,), bottleneck=False, width=4, stem="small", out=3, out_bias=True)


@pytest.mark.parametrize("alphas", [{}, {"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_targets_are_mixed_as_the_pictures_are(alphas):
    method = Supervised(encoder=ENCODER, **alphas)
    batch = {"views": jax.random.normal(jax.random.PRNGKey(0), (6, 1, 8, 8, 3)), "label": jnp.arange(6) % 3}
    params, extra = method.init(jax.random.PRNGKey(1), batch)
    out, _ = method.encode(params, extra, batch, jax.random.PRNGKey(2), {})
    loss, (_, metrics) = method.objective(params, extra, out, batch, {})
    if not alphas:
        assert "targets" not in out
        assert float(loss) == pytest.approx(float(losses.cross_entropy(out["logits"], batch["label"])))
        return
    targets = np.asarray(out["targets"])
    np.testing.assert_allclose(targets.sum(1), 1.0, rtol=1e-6)
    # Each picture is mixed with the one before it, by one weight for the batch.
    own = targets[np.arange(6), np.arange(6) % 3]
    np.testing.assert_allclose(own, own[0], rtol=1e-6)
    np.testing.assert_allclose(targets[np.arange(6), (np.arange(6) - 1) % 3], 1 - own, atol=1e-6)
    both = [losses.cross_entropy(out["logits"], jnp.roll(batch["label"], k)) for k in (0, 1)]
    assert float(loss) == pytest.approx(float(own[0] * both[0] + (1 - own[0]) * both[1]), rel=1e-5)
    assert 0 <= float(metrics["accuracy"]) <= 1
