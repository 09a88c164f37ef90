"""A folder of pictures with captions.csv, through the commands of the README: train, evaluate, caption."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from ssljax import caption
from ssljax import config as configs
from ssljax.data import sources
from ssljax.errors import UserError
from ssljax.train import train
from tests.conftest import METHODS

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 220)}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """180 plain pictures of a noisy colour, and what colour it is."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "caption"])
        for i in range(180):
            name, colour = list(COLOURS.items())[i % 3]
            pixels = np.clip(colour + rng.normal(0, 25, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
            rows.writerow([f"{i}.png", f"a picture in {name}"])
    return folder


def test_a_folder_with_captions_is_trained_on_and_written_about(pairs, tmp_path, monkeypatch, capsys):
    config = configs.load("configs/cappa_resnet_scenes.py", "steps=60,batch=16,parallel=0.25")
    config.data.update(source=f"folder:{pairs}", label="", caption="caption")
    config.evals.every = 0
    config.optim.lr.warmup_steps = 5
    train(config, tmp_path / "run")

    results = tmp_path / "captions.jsonl"
    words = ["caption", "--checkpoint", str(tmp_path / "run"), "--data", f"folder:{pairs}", "--count", "12", "--results", str(results)]
    caption.main(words)
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(rows) == 12 and all(row["caption"] in printed for row in rows)
    truth = [record["caption"] for record in sources.open(f"folder:{pairs}", "test").__getitems__(np.arange(12))]
    assert [row["id"] for row in rows] == list(range(12))
    assert np.mean([row["caption"] == told for row, told in zip(rows, truth, strict=True)]) >= 0.75, rows  # of three colours: it has looked
    beams = caption.captions(str(tmp_path / "run"), data=f"folder:{pairs}", count=12, beams=3)
    assert np.mean([text == told for (_, text), told in zip(beams, truth, strict=True)]) >= 0.75


def test_a_method_that_writes_nothing_says_so(tmp_path):
    config = configs.shrink(configs.load(METHODS["simclr"]))
    train(config, tmp_path)
    with pytest.raises(UserError, match="the method simclr writes no captions"):
        caption.captions(str(tmp_path), count=4)
