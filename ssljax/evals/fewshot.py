"""Few-shot classification: closed-form ridge regression on k examples a class, as big_vision judges (Zhai et al. 2022, section 2)."""

import numpy as np

from ssljax.evals import Context, NotApplicable, need

NEEDS = "features and labels of train and test sets"
SHOTS, DRAWS = (1, 5, 10, 25), 5
RIDGE = 2.0**10  # big_vision's, on features centred and of unit variance, whose Gram matrix grows with the number of examples


def run(context: Context) -> dict[str, float]:
    """{"fewshot_<k>_top1": mean over draws of the accuracy after k examples of each class, "fewshot_<k>_std": over draws}."""
    need(context, train=("features", "label"), test=("features", "label"))
    labels = np.asarray(context.train["label"])
    least = min(np.bincount(labels, minlength=context.classes)) if context.classes else 0
    shots = [k for k in SHOTS if k <= least]
    if not shots:
        raise NotApplicable(f"a class has {least} training examples")
    test = np.asarray(context.test["features"], np.float64), np.asarray(context.test["label"])
    out = {}
    for k in shots:
        accuracies = []
        for draw in range(DRAWS):
            rng = np.random.default_rng([context.seed, k, draw])
            pick = np.concatenate([rng.choice(np.flatnonzero(labels == c), k, replace=False) for c in range(context.classes)])
            train = np.asarray(context.train["features"][pick], np.float64)
            accuracies.append(accuracy(train, labels[pick], *test, classes=context.classes))
        out |= {f"fewshot_{k}_top1": float(np.mean(accuracies)), f"fewshot_{k}_std": float(np.std(accuracies))}
    return out


def accuracy(train, train_labels, test, test_labels, *, classes, ridge=RIDGE) -> float:
    """Share of test rows whose largest output is that of their class, of ridge regression onto one-hot labels in {-1, 1}.

    Features (N, D), float64, are centred and scaled by the training set's statistics, with a constant column that is penalised like any."""
    mean, std = train.mean(0), train.std(0)
    std = np.where(std > 0, std, 1.0)
    x, y = ((np.concatenate([(z - mean) / std, np.ones((len(z), 1))], axis=1)) for z in (train, test))
    target = 2.0 * np.eye(classes)[train_labels] - 1.0
    if len(x) < x.shape[1]:  # the dual: a system of as many unknowns as examples
        weights = x.T @ np.linalg.solve(x @ x.T + ridge * np.eye(len(x)), target)
    else:
        weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ target)
    return float(np.mean((y @ weights).argmax(-1) == test_labels))
