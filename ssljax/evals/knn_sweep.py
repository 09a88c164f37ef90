"""k-nearest neighbours under the best number of neighbours and temperature, chosen without the test set."""

import numpy as np

from ssljax.evals import Context, knn, need

NEEDS = "features and label of the train and the test set"
KS, TEMPERATURES = (1, 5, 10, 20, 50, 100, 200), (0.03, 0.07, 0.2)
HELD = 1024  # train examples, at most, that choose


def run(context: Context) -> dict:
    """{"knn_best_top1": right or wrong of each test example, "knn_best_k", "knn_best_temperature"}."""
    need(context, train=("features", "label"), test=("features", "label"))
    k, temperature = chosen(context.train, classes=context.classes, seed=context.seed)
    found = knn.right(context.train, context.test, classes=context.classes, k=k, temperature=temperature)
    return {"knn_best_top1": found, "knn_best_k": k, "knn_best_temperature": temperature}


def chosen(train: dict, *, classes: int, seed: int = 0, ks=KS, temperatures=TEMPERATURES) -> tuple[int, float]:
    """(k, temperature) that are most often right on rows held out of train, the first such pair.

    The nearest are found once; a pair only weighs them anew."""
    features, labels = np.asarray(train["features"]), np.asarray(train["label"])
    held, rest = np.split(np.random.default_rng(seed).permutation(len(features)), [min(HELD, max(len(features) // 4, 1))])
    found = knn.neighbours(features[rest], features[held], k=max(ks))
    scores = {(k, t): np.mean(knn.vote(found, labels[rest], classes, k, t).argmax(1) == labels[held]) for k in ks for t in temperatures}
    return max(scores, key=scores.get)
