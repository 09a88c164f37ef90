"""Linear probe by SGD, a grid of learning rates at once, as DINOv2 trains it (Oquab et al. 2023, appendix B.3)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssljax import losses
from ssljax.evals import Context, need, probes

NEEDS = "features and label of the train and the test set"
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)  # for a batch of 256
EPOCHS, BATCH, LEAST = 10, 256, 1000  # steps are at least LEAST: the grid is made for ImageNet's 12,500


def run(context: Context) -> dict:
    """{"sgd_linear_top1": right or wrong of each test example, "sgd_linear_rate"}, the rate chosen on a tenth of the train set."""
    need(context, train=("features", "label"), test=("features", "label"))
    features, labels = np.asarray(context.train["features"], np.float32), np.asarray(context.train["label"])
    order = np.random.default_rng(context.seed).permutation(len(features))
    held, rest = np.split(order, [max(1, len(order) // 10)])
    options = dict(classes=context.classes, seed=context.seed)
    best = int((predict(fit(features[rest], labels[rest], rates=RATES, **options), features[held]) == labels[held]).mean(1).argmax())
    found = predict(fit(features, labels, rates=RATES[best : best + 1], **options), np.asarray(context.test["features"]))[0]
    return {"sgd_linear_top1": found == np.asarray(context.test["label"]), "sgd_linear_rate": RATES[best]}


def fit(features, labels, *, classes, rates, seed=0, epochs=EPOCHS) -> dict:
    """One linear layer a rate, all on the same batches: SGD with momentum 0.9, a cosine, no weight decay.
    -> {"kernel": (R, D, classes), "bias": (R, classes)}."""
    steps = max(LEAST, epochs * len(features) // BATCH)
    rates = jnp.asarray(rates) * BATCH / 256
    scale = lambda update: update * rates.reshape(-1, *(1,) * (update.ndim - 1))  # noqa: E731
    each = optax.stateless(lambda updates, params: jax.tree.map(scale, updates))
    optimizer = optax.chain(optax.sgd(optax.cosine_decay_schedule(1.0, steps), momentum=0.9), each)
    shape = (len(rates), features.shape[-1], classes)
    params = {"kernel": 0.01 * jax.random.normal(jax.random.PRNGKey(seed), shape), "bias": jnp.zeros((len(rates), classes))}

    def loss(params, rows):
        x, y = rows
        logits = _logits(params, x)  # the sum over rates: each has its own gradient
        return len(logits) * losses.cross_entropy(logits, jnp.broadcast_to(y, logits.shape[:2]))

    return probes.fit(loss, params, (features, labels), optimizer=optimizer, steps=steps, batch=BATCH, seed=seed)


def predict(params, features) -> np.ndarray:
    """Classes int (R, N)."""
    return probes.in_parts(jax.jit(lambda x: _logits(params, x).argmax(-1).T), features, 1024).T


def _logits(params, x):
    return jnp.einsum("nd,rdc->rnc", x, params["kernel"]) + params["bias"][:, None]
