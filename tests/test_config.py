"""Configs: every key is known, checked and overridable."""

import copy
import json
import random

import pytest

from ssljax import config as configs
from ssljax.errors import UserError
from tests.conftest import CONFIGS

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_describes_itself_and_survives_storage(path):
    config = configs.load(path)
    built = configs.build(config)
    again = configs.from_dict(configs.to_dict(config))
    assert configs.build(again) == built
    rows = configs.describe(config)
    assert all(help for _, _, help in rows), [key for key, _, help in rows if not help]
    assert len({key for key, _, _ in rows}) == len(rows)
    configs.build(configs.shrink(config))
    first = path.read_text().splitlines()
    assert any(line.startswith("python -m ssljax.train --config configs/" + path.name) for line in first[:4]), "the command comes first"
    assert any("xpect" in line or "aper" in line for line in first[:12]), "then what to expect"


def simclr():
    return configs.load(CONFIGS[[p.stem for p in CONFIGS].index("simclr_resnet_scenes")])


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("method.temperature", "0.5", 0.5),
        ("method.temperature", "1", 1.0),
        ("batch", "64", 64),
        ("data.source", "folder:a b", "folder:a b"),
        ("augment.views.scale", "(0.1, 1)", (0.1, 1)),
        ("method.encoder.bottleneck", "true", True),
        ("mesh.fsdp", "2", 2),
        ("optim.lr.peak", "1e-4", 1e-4),
        ("evals.names", "('knn', 'linear')", ("knn", "linear")),
    ],
)
def test_an_override_takes_the_type_of_the_value_there(key, text, value):
    config = simclr()
    configs.override(config, key, text)
    for part in key.split("."):
        config = config[part]
    assert config == value and type(config) is type(value)


@pytest.mark.parametrize(
    "key, text, says",
    [
        ("method.temprature", "1", "did you mean 'temperature'"),
        ("metod.temperature", "1", "did you mean 'method'"),
        ("batch", "1.5", "expected int"),
        ("batch", "many", "expected int"),
        ("method.encoder.bottleneck", "1", "expected bool"),
        ("method", "simclr", "it is a section"),
        ("batch.size", "1", "is a value and has no keys"),
    ],
)
def test_an_override_that_cannot_be_is_named(key, text, says):
    with pytest.raises(UserError, match=says):
        configs.override(simclr(), key, text)


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(method=dict(name="simclr", temprature=1.0)), "config.method.temprature.*did you mean 'temperature'"),
        (dict(method=dict(name="simclr", encoder=dict(name="resnet", widht=3))), "config.method.encoder.widht"),
        (dict(method=dict(name="simclr", encoder=dict(name="resnet", dtype="bf16"))), "config.method.encoder.dtype='bf16'.*bfloat16"),
        (dict(method=dict(name="mae", encoder=dict(name="vit", last_norm="token"))), "config.method.encoder.last_norm='token'.*tokens"),
        (dict(data=dict(sorce="x")), "config.data.sorce.*did you mean 'source'"),
        (dict(augment={"views": dict(cuont=2)}), "config.augment.views.cuont"),
        (dict(optim=dict(name="adamw", lr=1e-3, beta2=0.9)), "beta2"),
        (dict(optim=dict(name="adam", lr=1e-3)), "adam"),
        (dict(optim=dict(name="adamw")), "config.optim.lr is missing"),
        (dict(augment={"views": dict(count=2, blur=(0.1, 0.2, 0.3))}), "config.augment.views.blur"),
        (dict(stepz=3), "config.stepz.*did you mean 'steps'"),
        (dict(batch=10, accumulate=3), "does not divide by config.accumulate"),
        (dict(batch=12, accumulate=2, microbatch=4), "config.microbatch=4.*divides the 6 examples"),
    ],
)
def test_a_config_file_that_cannot_be_is_named(change, says):
    parts = dict(method=dict(name="simclr"), augment={"views": dict(count=2)}, optim=dict(name="adamw", lr=1e-3))
    with pytest.raises(UserError, match=says):
        configs.build(configs.make(**{**parts, **change}))


def test_arguments_of_a_config_file_are_typed_and_checked():
    assert dict(configs.parse("batch=8,data=photo", batch=4, data="plain", lr=0.1)) == {"batch": 8, "data": "photo", "lr": 0.1}
    with pytest.raises(UserError, match="did you mean 'batch'"):
        configs.parse("bacth=8", batch=4)
    with pytest.raises(UserError, match="expected batch=int"):
        configs.parse("batch=x", batch=4)
    with pytest.raises(UserError, match="no such file; of .* the closest: .*simclr_resnet_scenes.py"):
        configs.load(CONFIGS[0].parent / "simclr.py")


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"keep": 0}, "checkpoint.keep=0: expected at least 1"),
        ({"every": 0}, "checkpoint.every=0: expected at least 1"),
        ({"every": 100, "keep_every": 250}, "keep_every=250: expected a multiple of checkpoint.every=100"),
        ({"every": 200, "best": "knn_top1"}, "best='knn_top1' needs evaluations.*evals.every=300.*checkpoint.every=200"),
    ],
    ids=lambda x: "" if isinstance(x, str) else "-".join(x),
)
def test_checkpoint_policies_that_cannot_be_are_named(changes, says):
    config = simclr()
    config.checkpoint.update(changes)
    with pytest.raises(UserError, match=says):
        configs.build(config)


def test_differences_are_the_keys_that_a_resumed_run_may_not_change():
    before, now = simclr(), simclr()
    now.update(steps=7, microbatch=2, nan="skip:3")
    now.log.every = now.checkpoint.every = now.evals.every = 5
    now.mesh.fsdp, now.data.source = 2, "folder:/moved"
    assert configs.differences(configs.to_dict(before), configs.to_dict(now)) == []
    now.method.temperature, now.optim.b1 = 0.3, 0.8
    assert configs.differences(configs.to_dict(before), configs.to_dict(now)) == [
        "config.method.temperature: 0.2, now 0.3",
        "config.optim.b1: 'absent', now 0.8",
    ]


JUNK = (None, "", "x", "0", "()", -1, 0, 7, 10**30, 0.5, float("nan"), float("inf"), True, [], [[]], {}, {"name": "x"}, [1, "a"], "\0", "é")


def paths(tree, where=()):
    """Every key path of a nested dict, sections included."""
    for key, value in tree.items():
        yield (*where, key)
        if isinstance(value, dict):
            yield from paths(value, (*where, key))


def mutate(tree, rng):
    """One key of a nested dict set to something else, renamed, left out, or put where it does not belong; in place."""
    path = rng.choice(list(paths(tree)))
    node = tree
    for key in path[:-1]:
        node = node[key]
    kind = rng.randrange(5)
    value = node.pop(path[-1])
    if kind == 0:
        node[path[-1] + rng.choice("sx_.\0")] = value
    elif kind == 1:
        rng.choice([tree, node])[rng.choice(path)] = value
    elif kind > 2:
        node[path[-1]] = rng.choice(JUNK)


@pytest.mark.thorough
def test_mutated_configs_end_in_a_config_or_a_named_error():
    """10,000 configs as a checkpoint stores them, each damaged in one to three places."""
    rng = random.Random(0)
    stored = [configs.to_dict(configs.load(path)) for path in CONFIGS]
    good = 0
    for i in range(10_000):
        values = copy.deepcopy(stored[i % len(stored)])
        for _ in range(rng.randint(1, 3)):
            mutate(values, rng)
        try:
            config = configs.from_dict(json.loads(json.dumps(values)))
            configs.build(config)
            configs.differences(values, stored[0])
            good += 1
        except UserError as error:
            assert "config" in str(error) or "method" in str(error), str(error)
    assert 1000 < good < 9000


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_mutated_command_lines_end_in_a_config_or_a_named_error():
    """10,000 overrides and arguments of config files, of mutated keys and values."""
    rng = random.Random(1)
    config = simclr()
    keys = [".".join(path) for path in paths(config.to_dict())]
    letters = "0123456789.eE+-()[]{}',:=_ xainfTrue\0é\n\\\""
    texts = [
        "0.1",
        "64",
        "True",
        "(0.1, 1.0)",
        "'knn',",
        "scenes/plain",
        "{'a': 1}",
        "1" * 5000,
        "(" * 300,
        "{[]: 1}",
        "9e999",
        "b'x'",
        "1 if 1 else 2",
    ]
    good = 0

    def scramble(text):
        text = list(text)
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(text) + 1)
            text[at : at + rng.randrange(2)] = rng.choice(letters)
        return "".join(text)

    for i in range(10_000):
        key, text = rng.choice(keys), rng.choice(texts)
        if rng.random() < 0.2:
            key = scramble(key)
        text = scramble(text)
        try:
            if i % 5 == 0:
                configs.parse(f"{key}={text},batch={scramble('64')}", batch=4, data="plain", lr=0.1, fast=False)
            else:
                configs.override(config.copy_and_resolve_references() if i % 50 else config, key, text)
            good += 1
        except UserError:
            pass
    assert 1000 < good < 9000


@pytest.mark.parametrize(
    "terms, says",
    [
        ({}, "config.method.terms={}: expected at least one method"),
        (dict(simclr=dict(temprature=1.0)), "config.method.terms.simclr.temprature.*did you mean 'temperature'"),
        (dict(simclr=dict(encoder=dict(name="resnet"))), "config.method.terms.simclr.encoder: terms share the encoder"),
        (dict(simclr=dict(weight="1")), "config.method.terms.simclr=.*its weight, a number"),
        (dict(simclrs=dict()), "no ssljax/methods/simclrs.py"),
        (dict(deepcluster=dict()), "config.method.terms.deepcluster: it does more than a loss"),
    ],
    ids=lambda x: "" if isinstance(x, str) else "-".join(x),
)
def test_terms_of_a_sum_that_cannot_be_are_named(terms, says):
    with pytest.raises(UserError, match=says):
        method = dict(name="sum", terms=terms)
        configs.build(configs.make(method=method, augment={"views": dict(count=2)}, optim=dict(name="adamw", lr=1e-3)))


def test_a_sums_parameters_have_its_terms_rules():
    config = configs.load(CONFIGS[[p.stem for p in CONFIGS].index("sum_resnet_scenes")])
    configs.override(config, "method.terms.dino.weight", "2")
    built = configs.build(config).method
    assert [(name, weight) for name, weight, _ in built.terms] == [("dino", 2.0), ("koleo", 0.1), ("simclr", 1.0)]
    assert all(term.encoder == built.encoder for _, _, term in built.terms)
    ((pattern, rule),) = built.groups
    assert pattern == "^dino/head/last_layer/" and rule.freeze_until == 50
