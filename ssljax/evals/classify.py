"""A classifier by its own logits: what a supervised or fine-tuned run says of the test set."""

import numpy as np

from ssljax.evals import Context, need

NEEDS = "a method that gives logits of the classes, and labels of the test set"


def run(context: Context) -> dict:
    """{"top1", "top5": whether the class is the likeliest, among the five likeliest, of each test example}; top5 from six classes on."""
    need(context, test=("logits", "label"))
    logits, labels = np.asarray(context.test["logits"]), np.asarray(context.test["label"])
    order = np.argsort(-logits, axis=1, kind="stable")
    out = {"top1": order[:, 0] == labels}
    return out | ({"top5": (order[:, :5] == labels[:, None]).any(1)} if logits.shape[1] > 5 else {})
