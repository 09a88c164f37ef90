"""What image-text methods save: FLIP's FLOPs, LiT's optimizer; UniCL's pairs without labels; CoCa's texts and their start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import config as configs
from ssljax import decode, inputs, losses, metrics, models, networks, program, sharding
from ssljax.methods.coca import CoCa
from ssljax.methods.unicl import UniCL
from ssljax.models.captioner import CaptionDecoder
from ssljax.models.resnet import ResNet
from ssljax.models.text import TextTransformer
from ssljax.models.vit import ViT
from tests.conftest import METHODS, program_of, raw_batch


def test_flip_has_at_most_six_tenths_of_the_image_towers_flops():
    built = configs.build(configs.load("configs/flip_vitl16_webimages.py"))
    encoder, images = built.method.encoder, jnp.zeros((8, 224, 224, 3))
    params = jax.eval_shape(lambda: models.init(encoder, jax.random.PRNGKey(0), images, train=False)[0])

    def flops(ratio):
        def loss(params, images):
            more = {} if not ratio else {"keep": losses.random_masking(jnp.zeros((8, 196)), ratio)[0]}
            return models.apply(encoder, params, {}, images, train=True, **more)[0]["pooled"].sum()

        return metrics.count_flops(jax.grad(loss), params, jax.ShapeDtypeStruct(images.shape, images.dtype))

    assert flops(built.method.mask_ratio) <= 0.6 * flops(0.0)


def test_lits_optimizer_has_nothing_of_the_locked_tower():
    config = configs.shrink(configs.load(METHODS["lit"]))
    run = program.make(config, configs.build(config), sharding.make_mesh({"data": 8}, batch=config.batch), raw_batch(config), examples=64)
    count = lambda tree: sum(np.prod(x.shape) for x in jax.tree.leaves(tree) if hasattr(x, "shape"))  # noqa: E731
    assert count(run.shapes.extra["frozen"]) > 0 and "encoder" not in run.shapes.params
    assert count(run.shapes.opt) <= 2 * count(run.shapes.params) + 10  # two moments and counters


def test_pairs_whose_label_does_not_count_stand_alone():
    towers = dict(encoder=ResNet(stages=(1,), bottleneck=False, width=4, stem="small", out=8), text=text(out=8))
    rng, ids = jax.random.PRNGKey(0), jnp.tile(jnp.arange(1, 6), (64, 1))
    batch = {"views": jax.random.normal(rng, (64, 1, 8, 8, 3)), "text": ids, "label": jnp.arange(64) % 3 - (jnp.arange(64) == 63)}
    for share in (0.0, 0.25, 1.0):
        method = UniCL(**towers, label_share=share)
        params, extra = method.init(rng, batch)
        out, _ = method.encode(params, extra, batch, rng, {})
        counted = np.asarray(out["label"]) >= 0
        assert abs(counted.mean() - share) < 0.2 and (np.asarray(out["label"])[counted] == np.asarray(batch["label"])[counted]).all()
        loss, _ = method.objective(params, extra, out, batch, {})
        labels = jnp.where(out["label"] < 0, 1000 + jnp.arange(64), out["label"])
        wanted = losses.unicl(out["image"], out["text"], labels, jnp.exp(params["logit_scale"]), impl="dense")
        np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def text(**more):
    return TextTransformer(vocab_size=11, length=5, width=16, depth=2, heads=2, mlp_dim=32, causal=True, pool="gap", **more)


@pytest.fixture(scope="module")
def coca():
    sizes = dict(width=16, depth=2, heads=2, mlp_dim=32)
    image = ViT(image_size=8, patch_size=4, pool="queries", queries=4, query_width=16, query_heads=2, last_norm="pooled", class_token=False,
                out=8, **sizes)  # fmt: skip
    tower = TextTransformer(vocab_size=11, length=5, causal=True, class_token=True, last_norm="pooled", out=8, **sizes)
    method = CoCa(encoder=image, text=tower, decoder=CaptionDecoder(vocab_size=11, cross_mlp_dim=32, **sizes))
    batch = {
        "views": jax.random.normal(jax.random.PRNGKey(0), (3, 1, 8, 8, 3)),
        "text": jnp.array([[3, 4, 1, 0, 0], [10, 5, 6, 1, 0], [7, 7, 7, 7, 1]]),
    }
    params, extra = method.init(jax.random.PRNGKey(1), batch)
    return method, jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.PRNGKey(x.size), x.shape), params), extra, batch


def test_a_text_is_put_behind_its_start_unless_it_has_one(coca):
    method, params, extra, batch = coca
    out, _ = method.encode(params, extra, batch, jax.random.PRNGKey(0), {})
    np.testing.assert_array_equal(out["words"], [[3, 4, 1, 0], [5, 6, 1, 0], [7, 7, 7, 7]])
    started = networks.started(batch["text"], 10)
    again, _ = method.encode(params, extra, {**batch, "text": started}, jax.random.PRNGKey(0), {})
    np.testing.assert_array_equal(again["logits"], out["logits"])


def test_what_coca_writes_with_a_cache_is_what_its_training_pass_says(coca):
    method, params, extra, batch = coca
    write = method.writer(params, extra, batch["views"][:, 0])
    words = np.asarray(decode.greedy(write, length=4))
    padded = np.concatenate([np.full((3, 1), 10), words], axis=1)
    logits, _ = method.encode(params, extra, {**batch, "text": jnp.asarray(padded)}, jax.random.PRNGKey(0), {})
    best = np.asarray(logits["logits"].at[..., 10].set(-jnp.inf)).argmax(-1)
    ended = np.cumsum(words == 0, axis=1) - (words == 0) > 0
    np.testing.assert_array_equal(np.where(ended, 0, best), words)
    assert len({tuple(row) for row in words.tolist()}) > 1  # it looks at the picture


@pytest.mark.parametrize("mesh", ["1", "data=8"])
def test_any_number_of_texts_is_embedded_by_one_program(mesh):
    _, built, made = program_of(METHODS["siglip"], mesh)
    state, tower = made.init(), built.method.text
    rng = np.random.default_rng(0)
    ids = {n: rng.integers(1, tower.vocab_size, (n, tower.length)).astype(np.int32) for n in (1, 30, inputs.TEXTS + 44)}
    before = made.embed._cache_size()
    for want in ids.values():
        got = inputs.text_embedder(made, state, lambda texts, want=want: want)(["a text"] * len(want))
        alone = built.method.embed(state.params, state.extra, {"text": jnp.asarray(want)})["text_embedding"]
        np.testing.assert_allclose(got, alone, rtol=1e-4, atol=1e-6)
    assert made.embed._cache_size() - before <= 1
