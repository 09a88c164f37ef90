"""Recipes: the papers' values, and that each builds and runs as a config's augment."""

import jax
import numpy as np
import pytest

from ssljax import augment, fields
from ssljax.augment import Group, recipes
from ssljax.errors import UserError

pytestmark = pytest.mark.quick


def test_the_papers_values():
    byol = recipes.make("byol")["views"]
    assert (byol["count"], byol["blur"], byol["solarize"], byol["saturation"], byol["hue"]) == (2, (1.0, 0.1), (0.0, 0.2), 0.2, 0.1)
    simclr, moco = recipes.make("simclr")["views"], recipes.make("moco_v2")["views"]
    assert (simclr["brightness"], simclr["hue"], simclr["scale"], simclr["blur"]) == (0.8, 0.2, (0.08, 1.0), (0.5,))
    assert (moco["brightness"], moco["saturation"], moco["hue"], moco["scale"]) == (0.4, 0.4, 0.1, (0.2, 1.0))
    swav, dino = recipes.make("swav"), recipes.make("dino", crops=10)
    assert [(g["count"], g["size"], g["scale"]) for g in swav.values()] == [(2, 224, (0.14, 1.0)), (6, 96, (0.05, 0.14))]
    assert [(g["count"], g["size"], g["scale"]) for g in dino.values()] == [(2, 224, (0.25, 1.0)), (10, 96, (0.05, 0.25))]
    local = dino["crops"]
    np.testing.assert_allclose(np.array(local["sigma"]) * 96 / 224, (0.1, 2.0))  # pixels of the 96-pixel crop
    assert "solarize" not in local and local["blur"] == (0.5,)
    assert recipes.make("mae")["views"] == dict(count=1, size=224, scale=(0.2, 1.0))
    deit = recipes.make("supervised")["views"]
    assert (deit["rand_augment"], deit["rand_augment_law"], deit["erase"]) == ((2, 9), "timm", (0.25,))


def test_options_and_what_cannot_be():
    assert recipes.make("byol", size=32, hue=0.5)["views"] | dict(hue=0.1, size=224) == recipes.make("byol")["views"]
    assert list(recipes.make("dino", crops=0)) == ["views"]
    assert recipes.make("swav", size=64)["crops"]["size"] == 27
    with pytest.raises(UserError, match="simclr, moco_v2, byol, swav, dino, mae, supervised"):
        recipes.make("simsiam")
    with pytest.raises(UserError, match="no small crops"):
        recipes.make("byol", crops=4)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_builds_as_a_configs_augment(name):
    groups = {k: fields.build(Group, fields.expand(Group, g, k), k) for k, g in recipes.make(name, size=16).items()}
    raw = {"image": np.zeros((1, 20, 20, 3), np.uint8), "id": np.zeros(1, np.int32), "epoch": np.zeros(1, np.int32)}
    out = jax.eval_shape(augment.make(groups, seed=0, mean=(0.5,) * 3, std=(0.5,) * 3), raw)
    for key, group in groups.items():
        assert out[key].shape == (1, group.count, group.size, group.size, 3)
