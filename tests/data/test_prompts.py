"""Prompt sets against digests of the published lists, and class-name files."""

import hashlib

import pytest

from ssljax import inputs
from ssljax.data import prompts, sources
from ssljax.errors import UserError

pytestmark = pytest.mark.quick

# SHA-256 of the templates, one a line, as open_clip 3.3.0's zero_shot_metadata.py and openai/CLIP's data/prompts.md list them.
PUBLISHED = {
    "openai_imagenet": (80, "4f976686fb651bb5803d4689dcd849f75efe0ef19a3c801355bc9a6f03c8a5af"),
    "openai_imagenet_7": (7, "6ef3883987d224b7949da69fe0b615af152e1560eaac4c5c38555e50c882d415"),
    "openai_cifar": (18, "9bbf912e1144ca4c7de308d478b5ced7ea3df9e61ce5d100ef184831bb5dc715"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sets_are_the_published_ones(name):
    templates = prompts.named(name)
    assert (len(templates), hashlib.sha256("\n".join(templates).encode()).hexdigest()) == PUBLISHED[name]


def test_every_template_takes_one_name():
    for templates in prompts.SETS.values():
        assert all(t.count("{}") == 1 and "cat" in t.format("cat") for t in templates) and len(set(templates)) == len(templates)
    with pytest.raises(UserError, match="prompt set 'imagenet' is unknown.*openai_imagenet"):
        prompts.named("imagenet")


def test_a_set_is_used_when_it_is_asked_for():
    source = sources.scenes("photo", "test", n=8)
    asked = inputs.prompts(source, "openai_cifar")
    assert set(asked) == set(source.labels()) and all(len(templates) == 18 for templates in asked.values())
    assert inputs.prompts(source)["colour"][0] == "a {} digit"
    with pytest.raises(UserError, match="unknown"):
        inputs.prompts(source, "none such")


def test_class_name_files(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("tench\n great white shark\r\nkite (bird of prey)\nhâche\n\n", encoding="utf-8")
    assert prompts.class_names(path, 4) == ["tench", "great white shark", "kite (bird of prey)", "hâche"]
    with pytest.raises(UserError, match="4 lines.*10 classes"):
        prompts.class_names(path, 10)
    path.write_text("a\n\nb\n")
    with pytest.raises(UserError, match="line 2 .*empty"):
        prompts.class_names(path)
    path.write_text("")
    with pytest.raises(UserError, match="line 1 .*empty"):
        prompts.class_names(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="not UTF-8"):
        prompts.class_names(path)
    with pytest.raises(UserError, match="no file.*one class name a line"):
        prompts.class_names(tmp_path / "missing.txt")
