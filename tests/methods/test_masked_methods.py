"""Two commands make a BEiT: the second takes the first's words, learns them, and takes nobody else's. data2vec 2.0's many masks."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from ssljax import config, encoder, metrics, models, networks, train
from ssljax.errors import UserError
from ssljax.methods.colorization import Colorization
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


def test_many_masks_of_an_image_share_what_its_teacher_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    images = jax.random.normal(jax.random.PRNGKey(0), (4, 1, 32, 32, 3))
    whole = config.build(config.load("configs/data2vec2_vit_scenes.py")).method
    whole = dataclasses.replace(whole, encoder=whole.encoder.clone(class_token=True), class_weight=0.5)
    params, extra = whole.init(jax.random.PRNGKey(1), {"views": images})
    encode = lambda m: lambda batch: m.encode(params, extra, batch, jax.random.PRNGKey(2), {})[0]  # noqa: E731
    encodings = jax.jit(encode(whole))({"views": images})

    # The loss of M masks is the mean of M losses of one mask each.
    of = lambda e: float(whole.objective(params, extra, e, {}, {})[0])  # noqa: E731
    one = [of({k: x if k == "target" else x[:, i : i + 1] for k, x in encodings.items()}) for i in range(whole.masks)]
    np.testing.assert_allclose(of(encodings), np.mean(one), rtol=1e-5)
    assert np.std(one) > 1e-3  # the masks are different ones
    masked = np.asarray(encodings["masked"])
    assert (masked.sum(-1) == 12).all() and len({row.tobytes() for row in masked[0]}) > 1  # three quarters of 16 patches

    # What it costs is a line in M, and its intercept the teacher's look at each image once.
    flops = lambda m: metrics.count_flops(encode(m), {"views": images})  # noqa: E731
    first, second, third = (flops(dataclasses.replace(whole, masks=number)) for number in (1, 2, 3))
    assert third - second == second - first
    teacher = lambda x: models.apply(whole.encoder, params["encoder"], {}, x, train=False)[0]["patches"]  # noqa: E731
    assert 2 * first - second == metrics.count_flops(teacher, images[:, 0])


@pytest.mark.quick
@pytest.mark.parametrize("knows, ratio", [("nothing", 1.0), ("all", 0.0)])
def test_a_colour_ratio_of_one_is_the_mean_colour(knows, ratio):
    """What a head says at the optimum of the weighted loss (bins as they come, times their weights), knowing nothing and knowing all."""
    method = Colorization(uniform=0.5, momentum=0.0)  # frequencies are this batch's
    count, rng = len(method.centres), np.random.default_rng(0)
    bins = rng.choice(count, p=rng.dirichlet(np.full(count, 0.1)), size=(4, 16))
    frequency = np.bincount(bins.ravel(), minlength=count) / bins.size
    weight = 1 / (0.5 * frequency + 0.5 / count)
    posterior = np.broadcast_to(frequency, (4, 16, count)) if knows == "nothing" else np.eye(count)[bins]
    encodings = {"logits": jax.numpy.asarray(np.log(posterior * weight + 1e-30)), "bins": jax.numpy.asarray(bins)}
    _, (_, told) = method.objective({}, {"frequency": jax.numpy.full(count, 1 / count)}, encodings, None, {})
    assert abs(float(told["mean_colour_ratio"]) - ratio) < 1e-5
