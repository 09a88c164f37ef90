"""Zero-shot classification: class names, put into prompt templates, become the classifier (CLIP, Radford et al. 2021,
section 3.1.4).
"""

import jax.numpy as jnp
import numpy as np

from ssljax.evals import Context, NotApplicable, need
from ssljax.evals.features import similarities, unit_norm

NEEDS = "image_embedding of the test set, a text tower, and class names with prompts for at least one kind of label"


def run(context: Context) -> dict:
    """{"zeroshot_<kind>": right or wrong of each test example} for every kind of label that has class names, templates, and
    labels in the test set.

    Labels of a kind are test["label:<kind>"]; where the data has a single unnamed kind, test["label"].
    """
    if context.text_embed is None:
        raise NotApplicable("the method has no text tower")
    need(context, test=("image_embedding",))
    out = {}
    for kind in context.prompts:
        labels = _labels(context, kind)
        if labels is None or kind not in context.class_names:
            continue
        classifier = zero_shot_classifier(embed_prompts(context.text_embed, context.class_names[kind], context.prompts[kind]))
        out[f"zeroshot_{kind}"] = right(context.test["image_embedding"], labels, classifier)
    if not out:
        raise NotApplicable("no kind of label has labels, class names and prompt templates")
    return out


def _labels(context: Context, kind: str):
    only = "label" if len(context.prompts) == 1 else None
    return context.test.get(f"label:{kind}", context.test.get(only))


def embed_prompts(text_embed, names: list[str], templates: list[str]) -> np.ndarray:
    """Every name in every template (at its "{}"), embedded in one call: (classes, templates, E), of tokens (classes, templates, T, E)."""
    texts = [template.format(name) for name in names for template in templates]
    embedding = np.asarray(text_embed(texts), np.float32)
    return embedding.reshape(len(names), len(templates), *embedding.shape[1:])


def zero_shot_classifier(template_embeddings):
    """(C, M, D) embeddings of C classes in M templates -> classifier (D, C): each normalised, averaged over
    templates, normalised again. Of tokens (C, M, T, D): as they are, for what is averaged then is the similarities (FILIP, section 3.3).
    """
    if template_embeddings.ndim == 4:
        return jnp.asarray(template_embeddings)
    return unit_norm(unit_norm(template_embeddings).mean(axis=1)).T


def evaluate(image_embedding, labels, classifier) -> dict[str, float]:
    """{"zeroshot_top1"}: fraction of rows of image_embedding (N, D) whose greatest product with classifier (D, C) is
    at labels (N,).
    """
    return {"zeroshot_top1": float(np.mean(right(image_embedding, labels, classifier)))}


def right(image_embedding, labels, classifier) -> np.ndarray:
    """Whether each row's greatest logit is at its label, bool (N,)."""
    return np.asarray(logits(image_embedding, classifier).argmax(1)) == np.asarray(labels)


def logits(image_embedding, classifier):
    """Cosines of images (N, D) and a classifier (D, C); of tokens (N, P, D) and (C, M, T, D), similarities averaged over templates. ->
    float32 (N, C).
    """
    classifier = jnp.asarray(classifier, jnp.float32)
    if classifier.ndim == 2:
        return similarities(unit_norm(image_embedding), classifier.T)
    prompts = classifier.reshape(-1, *classifier.shape[2:])
    return similarities(unit_norm(image_embedding), prompts).reshape(-1, *classifier.shape[:2]).mean(-1)
