import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ssljax import report
from ssljax.errors import UserError

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)


def pictures(*shape, size=8):
    return RNG.integers(256, size=(*shape, size, size, 3), dtype=np.uint8)


def a_run(name="SimCLR on <scenes>", metrics=None):
    lines = [{"step": s, "loss": 5 - s / 10, "lr": 1e-3, "note": "text"} for s in range(0, 20, 2)]
    lines += [{"step": s, "eval/knn_top1": 0.2 + s / 100} for s in (0, 10, 20)]
    return {
        "name": name,
        "summary": "ResNet & co.",
        "metrics": lines if metrics is None else metrics,
        "views": {"views": pictures(3, 2), "crops": pictures(3, 4, size=4)},
        "neighbours": {
            "query": pictures(2), "neighbours": pictures(2, 3), "distances": np.arange(6).reshape(2, 3) / 10,
            "query_labels": ["brick", "coffee"], "labels": [["brick", "coffee", "brick"], ["coffee"] * 3],
        },
        "zero_shot": {
            "images": pictures(2), "captions": [["a red two", "a blue two"], ["a red one", "a blue one"]],
            "scores": [[0.75, 0.25], [0.6, 0.4]], "truth": ["a red two", "a blue one"],
        },
        "attention": {"images": pictures(2), "maps": RNG.random((2, 4, 2, 2))},
        "confusion": {"table": [[8, 2], [5, 5]], "names": ["<brick>", "coffee"]},
        "map": {"places": RNG.normal(size=(20, 2)), "labels": np.arange(20) % 2, "names": ["<brick>", "coffee"]},
        "reconstructions": {"original": pictures(2), "masked": pictures(2), "reconstruction": pictures(2)},
        "diagnostics": {"rankme": 47.31, "feature_std": 0.913},
        "notes": ["zeroshot: the method has no text tower"],
        "config": {"seed": 0, "method": {"name": "simclr"}},
    }  # fmt: skip


TABLE = [
    {"run": "SimCLR", "features": "raw pixels", "knn_top1": 0.21, "linear_regulariser": 0.1},
    {"run": "SimCLR", "features": "random encoder", "knn_top1": 0.26, "linear_regulariser": 0.3},
    {"run": "SimCLR", "features": "pretrained", "knn_top1": 0.654, "linear_regulariser": 0.01, "zeroshot_colour": 0.9},
]


class Checker(HTMLParser):
    """Collects headings, pictures and addresses, and follows the nesting of the tags."""

    VOID = {"meta", "link", "img", "br", "hr"}

    def __init__(self):
        super().__init__()
        self.open, self.headings, self.images, self.addresses, self.heading = [], [], [], [], False

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [attrs[k] for k in ("src", "href", "xlink:href", "action", "srcset") if k in attrs]
        if tag == "img":
            self.images.append(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        self.heading = tag in ("h1", "h2", "h3")

    def handle_startendtag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.heading = False

    def handle_data(self, data):
        if self.heading:
            self.headings.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write(path, [a_run(), {"name": "bare"}], TABLE, title="A & B")
    text = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return text, checker


def test_all_sections_are_there(page):
    text, checker = page
    expected = [
        "A & B", "Results", "SimCLR on <scenes>", "Curves", "RankMe and feature spread", "Augmented views",
        "Reconstructions", "Attention maps", "Nearest neighbours", "Zero-shot examples", "Confusion", "Map of the features",
        "Not evaluated", "bare",
    ]  # fmt: skip
    assert checker.headings == expected
    assert "<summary>Configuration</summary>" in text and '"simclr"' in text
    assert "<scenes>" not in text  # escaped


def test_nothing_is_loaded_from_outside(page):
    text, checker = page
    assert "http://" not in text and "https://" not in text and "@import" not in text and "<script" not in text
    assert all(a.startswith(("data:", "#")) for a in checker.addresses)
    assert all(u.startswith("#") for u in re.findall(r"url\(([^)]*)\)", text))


def test_light_dark_and_narrow(page):
    text, _ = page
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    svg = text[text.index("<svg") : text.index("</svg>")]
    assert "var(--line-1)" in svg and not re.search(r"#0[123]0", svg)  # no marker colour is left


def test_style_is_whole():
    """A line lost or broken in the style sheet shows nowhere but on the screen."""
    rules = re.sub(r"@media[^{]*", "", report.STYLE)
    assert rules.count("{") == rules.count("}")
    light, dark = (dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", part)) for part in report.STYLE.split("@media", 2)[:2])
    assert light.keys() == dark.keys() and set(re.findall(r"var\((--[\w-]+)\)", report.STYLE)) <= light.keys()
    for declaration in re.findall(r"[{;]\s*([^{};]+);", report.STYLE):
        assert re.fullmatch(r"[a-z0-9-]+: [^:#\n]+|--[\w-]+: #[0-9a-f]{6}", declaration), declaration


def test_every_picture_has_its_alt_text_and_its_pixels(page):
    text, checker = page
    assert len(checker.images) == 3 * 2 + 3 * 4 + 2 * 4 + 2 + 2 * 3 + 2 * 5
    assert all(img["alt"] for img in checker.images)
    assert text.count('role="img" aria-label="') == text.count("<svg")
    pixels = pictures()
    src = re.search(r'src="data:image/png;base64,([^"]+)"', report.image(pixels, 'a "b"'))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(src.group(1))))), pixels)
    with pytest.raises(ValueError, match="float32"):
        report.image(pixels.astype(np.float32), "x")


def test_table_bolds_the_best_accuracy_only_and_leaves_blanks(page):
    table = report.results_table(TABLE)
    assert table.count("<strong>") == 1 and "<strong>0.654</strong>" in table
    assert table.count("class=blank") == 2
    told = report.results_table([{"run": "a", "features": "pretrained", "knn_top1": 0.5, "knn_top1_ci95": 0.021}])
    assert "0.500 <span class=blank>± 0.021</span>" in told and "ci95" not in told
    assert "kNN top\u20111" in table and "zero-shot colour" in table


def test_neighbours_of_another_label_are_marked(page):
    text, _ = page
    assert text.count("✗ coffee") == 1 and "✗ brick" not in text


def test_zero_shot_bars(page):
    text, _ = page
    assert text.count("<li class=right>") == 2 and 'style="width:75.0%"' in text


def test_metrics_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [{"step": 2, "loss": 3.0}]
    records += [{"step": 1, "loss": 9.0}, {"step": 2, "loss": 2.5}, {"step": 3, "loss": float("nan")}]
    path.write_text("\n".join(map(json.dumps, records)) + '\n{"step": 4, "lo')
    steps, values = report.read_metrics(path)["loss"]
    np.testing.assert_array_equal(steps, [1, 2, 3])
    np.testing.assert_array_equal(values, [9.0, 2.5, np.nan])
    report.write(tmp_path / "report.html", [a_run(metrics=path)], [])
    html = (tmp_path / "report.html").read_text()
    assert "loss against step; last: 2.500" in html


def test_curves_of_several_runs_over_one_another():
    x = np.arange(5)
    chart = report.line_chart({"a": (x, x * 1.0), "b": (x, x + 1.0)}, title="loss")
    assert "var(--line-1)" in chart and "var(--line-2)" in chart and "legend" in chart
    assert "fewer than two points" in report.curves({"loss": (np.array([1]), np.array([2.0]))})


@pytest.mark.parametrize(
    "value, text",
    [(0.65432, "0.654"), (47.31, "47.3"), (12345, "12,345"), (1e-5, "1.0e-05"), (0.0, "0.000"), (float("nan"), "nan")],
)
def test_numbers(value, text):
    assert report.number(value) == text
    assert report.number(np.float64(value)) == text or isinstance(value, int)


def test_patches_of_two_kinds_have_two_colours():
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, (3, 16))
    features = np.where(kinds[..., None], 3.0, -3.0) * np.eye(8)[0] + 0.01 * rng.normal(size=(3, 16, 8))
    html = report.patch_features(pictures(3, size=16), features)
    checker = Checker()
    checker.feed(html)
    decode = lambda src: np.asarray(Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))))  # noqa: E731
    shown = [decode(image["src"]) for image in checker.images if "features" in image["alt"]]
    assert len(shown) == 3 and shown[0].shape == (16, 16, 3)
    red = np.stack([picture[::4, ::4, 0].reshape(-1) for picture in shown]).astype(int)
    ones, zeros = red[kinds == 1], red[kinds == 0]
    assert min(ones.min(), 255 - zeros.max()) > 200 or min(zeros.min(), 255 - ones.max()) > 200


def test_use_of_a_codebook_is_counted():
    html = report.codebook([4, 0, 4, 0, 0, 4, 4, 0])
    assert "4 of 8 words are used (50%)" in html and "as even as 4 words" in html


def test_a_reconstruction_may_have_nothing_masked():
    checker = Checker()
    checker.feed(report.reconstructions(original=pictures(2), reconstruction=pictures(2)))
    assert len(checker.images) == 4


def test_the_curves_of_runs_are_drawn_over_one_another(tmp_path, capsys):
    for name, slope in (("first", 1.0), ("second", 2.0)):
        (tmp_path / name).mkdir()
        rows = [{"step": s, "loss": 5 - slope * s, "only" + name: s} for s in range(5)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "lo')  # being written
    out = tmp_path / "report.html"
    report.main(["report", str(tmp_path / "first"), str(tmp_path / "second"), "--out", str(out)])
    page = out.read_text()
    together = page[page.index("Curves of all runs") : page.index('id="run-0"')]
    assert together.count("<svg") == 1 and "first" in together and "second" in together  # the one metric that both have
    assert "logged up to step 4" in page
    with pytest.raises(UserError, match="no metrics.jsonl"):
        report.main(["report", str(tmp_path)])
    with pytest.raises(UserError, match="which runs"):
        report.main(["report"])
