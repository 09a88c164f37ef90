"""evaluate.py, through its own front door: a checkpoint, nothing else, gives a table and a report."""

import json
import sys

import jax
import numpy as np
import pytest

from ssljax import cli, evaluate, inputs, program, sharding
from ssljax import config as configs
from ssljax.errors import UserError
from ssljax.evals import linear
from ssljax.train import train
from tests.conftest import METHODS, raw_batch


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *words])
    evaluate.main(sys.argv)


def test_a_checkpoint_gives_a_table_and_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(linear.chosen.__kwdefaults__, "steps", 20)  # whether a probe converges is test_linear's question
    config = configs.shrink(configs.load(METHODS["siglip"]))
    config.evals.every = 2  # the online evaluators run as well
    train(config, tmp_path / "siglip")
    logged = [json.loads(line) for line in (tmp_path / "siglip" / "metrics.jsonl").read_text().splitlines()]
    assert any("knn_top1" in line for line in logged) and any("loss" in line for line in logged)

    report, results = tmp_path / "report.html", tmp_path / "results.json"
    run(monkeypatch, "--checkpoint", str(tmp_path / "siglip"), "--report", str(report), "--results", str(results))
    told = json.loads(results.read_text())
    rows = {row["features"]: row for row in told["rows"]}
    about = told["runs"]["siglip"]
    assert about["step"] == config.steps and len(about["fingerprint"]) == 64 and about["config"]["method"]["name"] == "siglip"
    assert "jax" in told["versions"]
    assert set(rows) == {"raw pixels", "random encoder", "pretrained"}
    for metric in ("knn_top1", "linear_top1"):
        assert all(0 <= row[metric] <= 1 for row in rows.values())
    assert 0 <= rows["pretrained"]["zeroshot_label"] <= 1
    assert "pretrained" in capsys.readouterr().out
    page = report.read_text()
    for heading in ("Results", "Curves", "Augmented views", "Nearest neighbours", "Zero-shot", "RankMe"):
        assert heading in page
    online = [line["knn_top1"] for line in logged if "knn_top1" in line]
    assert rows["pretrained"]["knn_top1"] == pytest.approx(online[-1], abs=1e-6)  # the same evaluators, the same numbers
    assert 0 <= rows["pretrained"]["knn_top1_ci95"] <= 1 and not any(key.endswith("_ci95") for line in logged for key in line)

    # Features are kept: judged again, now named by its checkpoints folder, none is computed, and the number is the same.
    monkeypatch.setattr(inputs, "features", lambda *_, **__: pytest.fail("features were computed again"))
    again = ["--checkpoint", f"{tmp_path}/siglip/checkpoints", "--evals", "knn,captions", "--nobaselines", "--results", str(results)]
    report.unlink()
    run(monkeypatch, *again, "--report", str(report))
    assert set(json.loads(results.read_text())["runs"]) == {"siglip"} and "Curves" in report.read_text()
    assert json.loads(results.read_text())["rows"][0]["knn_top1"] == rows["pretrained"]["knn_top1"]
    assert "captions: the method writes no captions" in capsys.readouterr().out
    with pytest.raises(pytest.fail.Exception):
        run(monkeypatch, *again, "--nocache")


def test_wrong_checkpoints_and_evaluators_are_named(tmp_path, monkeypatch):
    for words, says in (
        (["--checkpoint", str(tmp_path / "nothing")], "nothing"),
        (["--checkpoint", str(tmp_path)], "no complete checkpoint"),
        ([], "--checkpoint is missing"),
        (["--checkpoint", str(tmp_path), "--evals", "knnn"], "knnn"),
    ):
        with pytest.raises(UserError, match=says):
            run(monkeypatch, *words)


def test_programs_are_read_from_where_the_run_keeps_them(tmp_path, monkeypatch):
    given = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(evaluate, "restore", lambda *_, **__: pytest.fail(str(jax.config.jax_compilation_cache_dir)))
    try:
        for flag, folder in (("--cache", f"{tmp_path}/compiled"), ("--nocache", "None")):
            jax.config.update("jax_compilation_cache_dir", None)
            with pytest.raises(pytest.fail.Exception, match=f"^{folder}$"):
                run(monkeypatch, "--checkpoint", f"{tmp_path}/checkpoints/", "--evals", "knn", flag)
    finally:
        jax.config.update("jax_compilation_cache_dir", given)


@pytest.mark.quick
def test_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        cli.command(evaluate.main)
    assert stopped.value.code == 0
    assert "--report" in capsys.readouterr().out


def test_what_an_encoder_sees_is_the_same_on_one_device_and_on_eight():
    config = configs.shrink(configs.load(METHODS["ibot"]))  # a ViT with a class token
    built, images = configs.build(config), np.random.default_rng(0).integers(0, 256, (37, 32, 32, 3)).astype(np.uint8)
    seen = []
    for count in (1, 8):
        mesh = sharding.make_mesh({"data": count}, batch=config.batch, devices=jax.devices()[:count])
        p = program.make(config, built, mesh, raw_batch(config), examples=64)
        state = p.init()
        seen.append(inputs.looker(built, p, state, batch=16)(images) | {"views": inputs.viewer(built, p, images)(2)})
    side = 32 // built.method.encoder.patch_size
    assert seen[0]["patches"].shape[:3] == (37, side, side) and seen[0]["attention"].shape == (37, built.method.encoder.heads, side, side)
    assert seen[0]["views"].shape[:2] == (37, 2)
    for key, value in seen[0].items():
        np.testing.assert_allclose(seen[1][key], value, atol=2e-5, err_msg=key)
    # What is left of a row's attention goes to the class token itself.
    assert (seen[0]["attention"].sum((2, 3)) < 1).all() and seen[0]["attention"].min() >= 0
