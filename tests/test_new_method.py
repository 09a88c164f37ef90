"""A new method is one file and one config, anywhere on the Python path: no registry, no edit elsewhere."""

import textwrap

import jax
import numpy as np
import pytest

from ssljax import config as configs
from ssljax import method, program, sharding, trees
from ssljax.errors import UserError
from ssljax.train import train
from tests.conftest import ROOT, raw_batch, small_config

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


def test_gradient_accumulation_averages_the_gradients_of_the_parts(toy):
    """For a loss that is a mean over examples that is the gradient of the whole batch; on four devices, each with its own rows."""
    moved = {}
    for parts in (1, 4):
        config = small_config(toy, accumulate=parts)
        config.data.crop = "device"
        built = configs.build(config)
        mesh = sharding.make_mesh({"data": 4}, batch=config.batch, devices=jax.devices()[:4])
        run = program.make(config, built, mesh, raw_batch(config), examples=64)
        state, metrics = run.step(run.init(), run.put(raw_batch(config)))
        moved[parts] = {name: np.asarray(leaf) for name, leaf in trees.names(state.opt) if "/mu/" in name}
        moved[parts]["loss"] = np.asarray(metrics["loss"])
    for name, whole in moved[1].items():
        np.testing.assert_allclose(moved[4][name], whole, rtol=1e-4, atol=1e-6 * np.abs(whole).max() + 1e-9, err_msg=name)
