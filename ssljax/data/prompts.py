"""Prompt templates for zero-shot classification, as data: names of sets, and templates with "{}" where the class name goes.

    openai_imagenet   the 80 of CLIP's ImageNet figures (Radford et al. 2021, section 3.1.4; openai/CLIP, Prompt_Engineering_for_ImageNet)
    openai_imagenet_7 seven of them, found there by forward selection; nearly as good, eleven times cheaper
    openai_cifar      the 18 for CIFAR-10 and CIFAR-100 (openai/CLIP, data/prompts.md)
    photo             "a photo of a {}." alone
    generic           two that suit any noun
    name              the class name alone

Class names come from the data set, or from a file of one name a line (`class_names`).
"""

import pathlib

from ssljax.errors import UserError

SETS = {
    "openai_imagenet": (
        "a bad photo of a {}.",
        "a photo of many {}.",
        "a sculpture of a {}.",
        "a photo of the hard to see {}.",
        "a low resolution photo of the {}.",
        "a rendering of a {}.",
        "graffiti of a {}.",
        "a bad photo of the {}.",
        "a cropped photo of the {}.",
        "a tattoo of a {}.",
        "the embroidered {}.",
        "a photo of a hard to see {}.",
        "a bright photo of a {}.",
        "a photo of a clean {}.",
        "a photo of a dirty {}.",
        "a dark photo of the {}.",
        "a drawing of a {}.",
        "a photo of my {}.",
        "the plastic {}.",
        "a photo of the cool {}.",
        "a close-up photo of a {}.",
        "a black and white photo of the {}.",
        "a painting of the {}.",
        "a painting of a {}.",
        "a pixelated photo of the {}.",
        "a sculpture of the {}.",
        "a bright photo of the {}.",
        "a cropped photo of a {}.",
        "a plastic {}.",
        "a photo of the dirty {}.",
        "a jpeg corrupted photo of a {}.",
        "a blurry photo of the {}.",
        "a photo of the {}.",
        "a good photo of the {}.",
        "a rendering of the {}.",
        "a {} in a video game.",
        "a photo of one {}.",
        "a doodle of a {}.",
        "a close-up photo of the {}.",
        "a photo of a {}.",
        "the origami {}.",
        "the {} in a video game.",
        "a sketch of a {}.",
        "a doodle of the {}.",
        "a origami {}.",
        "a low resolution photo of a {}.",
        "the toy {}.",
        "a rendition of the {}.",
        "a photo of the clean {}.",
        "a photo of a large {}.",
        "a rendition of a {}.",
        "a photo of a nice {}.",
        "a photo of a weird {}.",
        "a blurry photo of a {}.",
        "a cartoon {}.",
        "art of a {}.",
        "a sketch of the {}.",
        "a embroidered {}.",
        "a pixelated photo of a {}.",
        "itap of the {}.",
        "a jpeg corrupted photo of the {}.",
        "a good photo of a {}.",
        "a plushie {}.",
        "a photo of the nice {}.",
        "a photo of the small {}.",
        "a photo of the weird {}.",
        "the cartoon {}.",
        "art of the {}.",
        "a drawing of the {}.",
        "a photo of the large {}.",
        "a black and white photo of a {}.",
        "the plushie {}.",
        "a dark photo of a {}.",
        "itap of a {}.",
        "graffiti of the {}.",
        "a toy {}.",
        "itap of my {}.",
        "a photo of a cool {}.",
        "a photo of a small {}.",
        "a tattoo of the {}.",
    ),
    "openai_imagenet_7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "openai_cifar": (
        "a photo of a {}.",
        "a blurry photo of a {}.",
        "a black and white photo of a {}.",
        "a low contrast photo of a {}.",
        "a high contrast photo of a {}.",
        "a bad photo of a {}.",
        "a good photo of a {}.",
        "a photo of a small {}.",
        "a photo of a big {}.",
        "a photo of the {}.",
        "a blurry photo of the {}.",
        "a black and white photo of the {}.",
        "a low contrast photo of the {}.",
        "a high contrast photo of the {}.",
        "a bad photo of the {}.",
        "a good photo of the {}.",
        "a photo of the small {}.",
        "a photo of the big {}.",
    ),
    "photo": ("a photo of a {}.",),
    "generic": ("a photo of a {}", "{}"),
    "name": ("{}",),
}


def named(name):
    """The templates of a set. Raises UserError for a name that is none."""
    if name not in SETS:
        raise UserError(f"prompt set {name!r} is unknown; it is one of {', '.join(SETS)}")
    return SETS[name]


def class_names(path, count=None):
    """The class names in a text file, UTF-8, one a line: line i names class i. White space around a name is dropped.

    count: how many the labels need. Raises UserError for a missing file, an empty line (it would shift all after it) or another number.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"class names: there is no file {path}; it must be a text file with one class name a line")
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"class names: {path} is not UTF-8 text: {error}") from error
    if not all(names) or not names:
        raise UserError(f"class names: line {names.index('') + 1 if names else 1} of {path} is empty; every line must name a class")
    if count is not None and len(names) != count:
        raise UserError(f"class names: {path} has {len(names)} lines, the labels have {count} classes")
    return names
