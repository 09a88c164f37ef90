"""Two commands make a BEiT: the second takes the first's words, learns them, and takes nobody else's."""

import json
import shutil

import jax
import numpy as np
import pytest

from ssljax import encoder, networks, train
from ssljax.errors import UserError
from tests.conftest import ROOT


def command(config, workdir, *more):
    networks.checkpoint.cache_clear()  # as a process of its own would, the command reads the first stage anew
    train.main(["train", "--config", f"configs/{config}", "--shrink", "--workdir", str(workdir), *more])


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Runs that could be the tokenizer: dVAEs of two seeds and a SimCLR."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        command("dvae_resnet_scenes.py", folder / "dvae")
        command("dvae_resnet_scenes.py", folder / "other", "--config.seed=5")
        command("simclr_resnet_scenes.py", folder / "simclr")
    return folder


def test_beit_in_two_commands_and_the_wrong_checkpoint_is_refused(first, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    beit = lambda tokenizer: command("beit_vit_scenes.py", tmp_path / "beit", f"--config.method.tokenizer={tokenizer}")  # noqa: E731
    with pytest.raises(UserError, match=r"config.method.tokenizer=.*simclr' is a checkpoint of SimCLR, which has no tokens: expected"):
        beit(first / "simclr")
    with pytest.raises(UserError, match=r"config.method.tokenizer=.*nowhere'"):
        beit(first / "nowhere")
    assert not (tmp_path / "beit").exists()  # refused before anything was touched

    beit(first / "dvae")
    rows = [json.loads(line) for line in (tmp_path / "beit" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 2 and np.isfinite(losses).all()

    # The words are the first stage's, held still: its weights are in the checkpoint, bit for bit, and are not trained.
    held, words = encoder.restore(tmp_path / "beit"), encoder.restore(first / "dvae")
    jax.tree.map(np.testing.assert_array_equal, held.extra["frozen"]["tokenizer"]["params"], words.params)
    assert "tokenizer" not in held.params

    with pytest.raises(UserError, match="tokenizer.*other"):  # another path is another run
        beit(first / "other")
    shutil.move(first / "dvae", first / "dvae_kept")
    shutil.copytree(first / "other", first / "dvae")  # the path is the same, the weights are not
    with pytest.raises(UserError, match="tokenizer: not the weights that the run began with"):
        beit(first / "dvae")
    shutil.rmtree(first / "dvae")
    shutil.move(first / "dvae_kept", first / "dvae")
    beit(first / "dvae")
    assert "nothing to do" in capsys.readouterr().out
