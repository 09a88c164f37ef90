"""Do clusters found without labels coincide with classes? k-means of the test features, as many clusters as classes."""

import numpy as np

from ssljax.evals import Context, need
from ssljax.evals.features import unit_norm

NEEDS = "features and labels of the test set"


def run(context: Context) -> dict[str, float]:
    """`agreement` of k-means (10 starts, on unit features) and the labels of the test set, under cluster_*."""
    from sklearn.cluster import KMeans

    need(context, test=("features", "label"))
    features = np.asarray(unit_norm(context.test["features"]))
    count = min(context.classes, len(features))
    clusters = KMeans(count, n_init=10, random_state=context.seed).fit_predict(features)
    return {f"cluster_{name}": value for name, value in agreement(context.test["label"], clusters).items()}


def agreement(labels, clusters) -> dict[str, float]:
    """How well clusters, int (N,), match labels, int (N,); 1 is perfect.

    acc: share of examples right under the best one-to-one matching of clusters to classes. purity: the same where clusters may share
    a class. nmi, nmi_geometric: mutual information over the arithmetic and the geometric mean of the entropies. ami, ari: adjusted
    for chance (information, Rand index). homogeneity: 1 where each cluster has examples of one class only.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn import metrics

    table = metrics.cluster.contingency_matrix(labels, clusters)  # (classes, clusters)
    best = table[linear_sum_assignment(table, maximize=True)]
    return {
        "acc": float(best.sum() / table.sum()),
        "purity": float(table.max(axis=0).sum() / table.sum()),
        "nmi": float(metrics.normalized_mutual_info_score(labels, clusters)),
        "nmi_geometric": float(metrics.normalized_mutual_info_score(labels, clusters, average_method="geometric")),
        "ami": float(metrics.adjusted_mutual_info_score(labels, clusters)),
        "ari": float(metrics.adjusted_rand_score(labels, clusters)),
        "homogeneity": float(metrics.homogeneity_score(labels, clusters)),
    }
