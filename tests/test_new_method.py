"""A new method is one file and one config, anywhere on the Python path: no registry, no edit elsewhere."""

import textwrap

import jax
import numpy as np
import pytest

from ssljax import config as configs
from ssljax import method, trees
from ssljax.errors import UserError
from ssljax.train import train
from tests.conftest import ROOT, program_of, raw_batch

METHOD = '''
"""Toy: the mean of an image's features is the mean colour of its first view."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from ssljax import models
from ssljax.fields import arg, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class Toy(Method):
    """Regress the mean colour."""

    encoder: nn.Module = module("the encoder", name="vit", pool="gap")
    weight: float = arg(1.0, "weight of the loss")

    def init(self, rng, batch):
        encoder, _ = models.init(self.encoder, rng, batch["views"][:, 0], train=False)
        return {"encoder": encoder}, {}

    def encode(self, params, extra, batch, rng, s):
        h, _ = models.apply(self.encoder, params["encoder"], {}, batch["views"][:, 0], train=True, rng=rng)
        return {"h": h["pooled"][:, :3]}, extra

    def objective(self, params, extra, encodings, batch, s):
        colour = batch["views"][:, 0].mean((1, 2))
        return self.weight * jnp.square(encodings["h"] - colour).mean(), (extra, {})

    def embed(self, params, extra, batch):
        h, _ = models.apply(self.encoder, params["encoder"], {}, batch["image"], train=False)
        return {"features": h["pooled"]}
'''

CONFIG = """
from ssljax import config as c
from ssljax.models import vit


def get_config(arg=""):
    return c.make(
        method=dict(name="toy_colour", encoder=vit.size("S/16", pool="gap")),
        data=dict(source="scenes/plain", image_size=32, features="n=64,height=32-80,width=32-80,classes=10"),
        augment={"views": dict(count=1, size=32)},
        optim=dict(name="adamw", lr=1e-3),
    )
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy_colour.py").write_text(textwrap.dedent(METHOD))
    (tmp_path / "toy_config.py").write_text(textwrap.dedent(CONFIG))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "toy_config.py"


def test_the_loop_runs_it(toy, tmp_path):
    out = train(configs.shrink(configs.load(toy)), tmp_path / "run")
    assert int(out["state"].step) == 2 and np.isfinite(float(out["metrics"]["loss"]))


def test_the_contract_sweep_takes_it(toy):
    from tests import test_contract as contract

    for mesh in ("data=8", "data=4,fsdp=2"):
        contract.test_eight_devices_give_one_devices_loss_and_gradient(toy, mesh)
    contract.test_one_trace_in_twenty_steps_and_the_loss_falls(toy)
    contract.test_same_config_same_mesh_same_bits(toy)
    contract.test_embed_gives_one_finite_row_an_image(toy)


@pytest.mark.quick
def test_methods_are_found_by_file_name_and_a_wrong_name_lists_them():
    assert {"simclr", "siglip", "dino", "mae"} <= set(method.available())
    with pytest.raises(UserError, match="no ssljax/methods/simclrr.py.*simclr"):
        method.find("simclrr")


@pytest.mark.quick
def test_method_files_are_short_and_none_subclasses_another():
    for name in method.available():
        assert len((ROOT / "ssljax" / "methods" / f"{name}.py").read_text().splitlines()) < 150
        assert method.find(name).__bases__ == (method.Method,)


@pytest.mark.quick
def test_gradient_accumulation_averages_the_gradients_of_the_parts(method_config):
    """For a loss that is a mean over examples the parts' average is the whole gradient: MAE, whose mask count is fixed."""
    import dataclasses

    config, built, program = program_of(method_config, "1")
    if config.method.name != "mae":
        return
    state, raw = program.init(), raw_batch(config)
    steps = {}
    for parts in (1, 4):
        fixed = dataclasses.replace(built.method, mask_ratio=0.5)
        object.__setattr__(fixed, "_masking", lambda rng, images: _fixed_masking(images))
        step = method.make_train_step(fixed, _sgd(), program.schedules, program.augment, accumulate=parts)
        steps[parts], _ = jax.jit(step)(dataclasses.replace(state, opt=()), raw)
    for (name, whole), (_, split) in zip(trees.names(steps[1].params), trees.names(steps[4].params), strict=True):
        np.testing.assert_allclose(split, whole, rtol=1e-5, atol=1e-6, err_msg=name)


def _fixed_masking(images):
    from ssljax import losses

    noise = np.tile(np.linspace(0, 1, (images.shape[1] // 4) ** 2, dtype=np.float32), (images.shape[0], 1))
    return losses.random_masking(noise, 0.5)


def _sgd():
    import optax

    return optax.GradientTransformationExtraArgs(
        lambda params: (), lambda g, state, params=None, **_: (jax.tree.map(lambda x: -x, g), state)
    )
