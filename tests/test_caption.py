"""A folder of pictures with captions.csv, through the commands of the README: train, evaluate, caption."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from ssljax import caption, evaluate, train
from ssljax import config as configs
from ssljax.data import sources
from ssljax.errors import UserError
from tests.conftest import METHODS, ROOT

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 220)}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Plain pictures of a noisy colour, in a folder a colour, and a sentence about each: 180 to train on, 60 to be judged by."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for split, count in (("train", 180), ("test", 60)):
        for name in COLOURS:
            (folder / split / name).mkdir(parents=True)
        with (folder / split / "captions.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file", "caption"])
            for i in range(count):
                name, colour = list(COLOURS.items())[i % 3]
                pixels = np.clip(colour + rng.normal(0, 25, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
                rows.writerow([f"{name}/{i}.png", f"a picture in {name}"])
    return folder


def test_a_folder_with_captions_is_trained_on_judged_and_written_about(pairs, tmp_path, monkeypatch, capsys):
    source, run = f"folder:{pairs}", str(tmp_path / "run")
    words = ["train", "--config", "configs/coca_vit_scenes.py:steps=100,batch=32", f"--config.data.source={source}", "--config.data.label="]
    monkeypatch.chdir(ROOT)
    train.main([*words, "--workdir", run, "--config.evals.every=0", "--config.optim.lr.warmup_steps=5"])

    numbers = tmp_path / "numbers.json"
    evals = ["--evals", "zeroshot,retrieval,captions", "--nobaselines", "--results", str(numbers)]
    evaluate.main(["evaluate", "--checkpoint", run, *evals])
    scores = json.loads(numbers.read_text())["rows"][-1]
    assert scores["zeroshot_label"] >= 0.9, scores
    assert scores["caption_label"] >= 0.9, scores
    # 20 of the 60 texts are the same sentence, so that a perfect model finds its own first one time in twenty.
    assert scores["retrieval_image_to_text_r10"] >= 0.4, scores

    results = tmp_path / "captions.jsonl"
    capsys.readouterr()
    caption.main(["caption", "--checkpoint", run, "--data", source, "--count", "0", "--results", str(results)])
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(rows) == 60 and all(row["caption"] in printed for row in rows)
    truth = [record["caption"] for record in sources.open(source, "test").__getitems__(np.arange(60))]
    assert [row["id"] for row in rows] == list(range(60))
    assert np.mean([row["caption"] == told for row, told in zip(rows, truth, strict=True)]) >= 0.9, rows  # of three colours: it has looked
    beams = caption.captions(run, data=source, count=0, beams=3)
    assert np.mean([text == told for (_, text), told in zip(beams, truth, strict=True)]) >= 0.9


def test_a_method_that_writes_nothing_says_so(tmp_path):
    config = configs.shrink(configs.load(METHODS["simclr"]))
    train.train(config, tmp_path)
    with pytest.raises(UserError, match="the method simclr writes no captions"):
        caption.captions(str(tmp_path), count=4)
