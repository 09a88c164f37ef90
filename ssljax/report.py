"""report.html: what a run learned, in one file that opens anywhere, offline, in light and in dark.

python -m ssljax.report runs/simclr runs/byol --out report.html      # the curves of these runs as they are now, also while they go on
python -m ssljax.evaluate --checkpoint runs/simclr --report report.html                                # with results and pictures

`write` puts the page together; every figure is a function of plain arrays that returns a piece of HTML, so that a
notebook or another page can use it alone. Charts are inline SVG whose colours follow the page; pictures are data URIs.
Nothing is loaded from outside.
"""

import base64
import html
import io
import json
import math
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from absl import flags

from ssljax import cli, metrics
from ssljax.errors import UserError

# A figure is at most so many rows; the page is to be looked at, not to hold the data set.
MAX_ROWS = 8

ACCURACY = re.compile(r"top\d|zeroshot|_r\d+$|accuracy")  # metrics of which more is better
TELLING = re.compile(rf"(^|[/_])loss|rankme|feature_std|entropy|{ACCURACY.pattern}")  # curves that are in view

FLAGS = flags.FlagValues()
flags.DEFINE_string("out", "report.html", "the file to write", flag_values=FLAGS)


def write(path: str | os.PathLike, runs: list[dict], table: list[dict], *, title: str = "ssljax report", intro: str = "") -> None:
    """Writes the page.

    table: rows of the results, each {"run": str, "features": "raw pixels" | "random encoder" | "pretrained" | ...,
           metric: number, ...}; a metric a row does not have is left blank. Rows stay in order.
    runs:  one dict a run. "name" is required; all else is optional, and a section appears where its data is there:
        "summary"         str, one line under the heading
        "metrics"         path of a metrics.jsonl (each line {"step": int, name: scalar, ...}), or its lines as dicts
        "views"           uint8 (N, V, S, S, 3), or {group: such an array}: what the method saw, one row an example
        "neighbours"      keyword arguments of `nearest_neighbours`
        "zero_shot"       keyword arguments of `zero_shot_examples`
        "reconstructions" keyword arguments of `reconstructions`
        "patch_features"  keyword arguments of `patch_features`
        "codebook"        keyword arguments of `codebook`
        "attention"       keyword arguments of `attention_maps`
        "confusion"       keyword arguments of `confusion`
        "map"             keyword arguments of `feature_map`
        "diagnostics"     {name: number}: rankme, feature_std, ...
        "notes"           [str]: evaluators that did not apply, and why
        "config"          str, or anything json can print
    """
    body = [f"<header><h1>{_text(title)}</h1>{f'<p class=lede>{_text(intro)}</p>' if intro else ''}</header>"]
    if len(runs) > 1:
        links = "".join(f'<a href="#run-{i}">{_text(run["name"])}</a>' for i, run in enumerate(runs))
        body.append(f'<nav aria-label="Runs">{links}</nav>')
    if table:
        body.append(_section("Results", results_table(table), "results", level=2))
    if together := _together(runs):
        body.append(_section("Curves of all runs", together, "together", level=2))
    body += [_run(i, run) for i, run in enumerate(runs)]
    page = PAGE.replace("{title}", _text(title)).replace("{style}", STYLE).replace("{body}", "\n".join(body))
    with open(path, "w", encoding="utf-8") as f:
        f.write(page)


def _run(index: int, run: dict) -> str:
    parts = [f"<p class=lede>{_text(run['summary'])}</p>"] if run.get("summary") else []
    if run.get("metrics") is not None:
        parts.append(_section("Curves", curves(read_metrics(run["metrics"]))))
    if run.get("diagnostics"):
        parts.append(_section("RankMe and feature spread", diagnostics(run["diagnostics"])))
    if run.get("views") is not None:
        groups = run["views"] if isinstance(run["views"], dict) else {"views": run["views"]}
        parts.append(_section("Augmented views", "".join(augmented_views(v, group=k) for k, v in groups.items())))
    for key, heading, figure in (
        ("reconstructions", "Reconstructions", reconstructions),
        ("patch_features", "Patch features", patch_features),
        ("codebook", "Codebook", codebook),
        ("attention", "Attention maps", attention_maps),
        ("neighbours", "Nearest neighbours", nearest_neighbours),
        ("zero_shot", "Zero-shot examples", zero_shot_examples),
        ("confusion", "Confusion", confusion),
        ("map", "Map of the features", feature_map),
    ):
        if run.get(key) is not None:
            parts.append(_section(heading, figure(**run[key])))
    if run.get("notes"):
        parts.append(_section("Not evaluated", "<ul>" + "".join(f"<li>{_text(note)}</li>" for note in run["notes"]) + "</ul>"))
    if run.get("config") is not None:
        config = run["config"] if isinstance(run["config"], str) else json.dumps(run["config"], indent=2, default=str)
        parts.append(f"<details><summary>Configuration</summary><pre>{_text(config)}</pre></details>")
    return _section(run["name"], "\n".join(parts), f"run-{index}", level=2)


# --------------------------------------------------------------------------------------------------
# Tables and numbers
# --------------------------------------------------------------------------------------------------


def results_table(rows: list[dict]) -> str:
    """Rows of `write`'s table -> a table with one line a metric and one column a row, each run under its own heading; of accuracies the
    greatest in its run is bold, and "<metric>_ci95" stands beside its metric.
    """
    metrics = list(dict.fromkeys(k for row in rows for k in row if k not in ("run", "features") and not k.endswith("_ci95")))
    runs = list(dict.fromkeys(row.get("run", "") for row in rows))
    of = {run: [row for row in rows if row.get("run", "") == run] for run in runs}
    groups = "".join(f"<th scope=colgroup colspan={len(of[run])}>{_text(run)}</th>" for run in runs)
    heads = "".join(f"<th scope=col>{_text(row.get('features', ''))}</th>" for run in runs for row in of[run])
    lines = []
    for m in metrics:
        cells = [f"<th scope=row>{_text(label(m))}</th>"]
        for run in runs:
            rivals = [row[m] for row in of[run] if _is_number(row.get(m))]
            for row in of[run]:
                text = number(row[m]) if row.get(m) is not None else "<span class=blank>–</span>"
                best = ACCURACY.search(m) and len(rivals) > 1 and row.get(m) == max(rivals)
                half = row.get(f"{m}_ci95")
                interval = f" <span class=blank>± {number(half)}</span>" if half is not None else ""
                cells.append(f"<td>{f'<strong>{text}</strong>' if best else text}{interval}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = f"<tr class=run><th></th>{groups}</tr><tr><th scope=col>Metric</th>{heads}</tr>"
    return f"<div class=scroll tabindex=0><table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table></div>"


def diagnostics(values: dict[str, float]) -> str:
    """{name: number} -> figures in a row, with a line on how to read those known."""
    meaning = {
        "rankme": "effective rank of the features: 1 when they have collapsed, at most their width",
        "feature_std": "spread of the normalised features; about 1 when even, 0 when all point one way",
    }
    cards = []
    for name, value in values.items():
        hint = f"<p class=hint>{meaning[name]}</p>" if name in meaning else ""
        cards.append(f"<div class=card><p class=cardname>{_text(label(name))}</p><p class=figure>{number(value)}</p>{hint}</div>")
    return f"<div class=cards>{''.join(cards)}</div>"


def number(value) -> str:
    """A number for reading: three decimals below ten, one above; tiny and huge ones by powers of ten; else as text."""
    if not _is_number(value):
        return _text(str(value))
    if isinstance(value, (int, np.integer)) or (float(value).is_integer() and abs(value) >= 10):
        return f"{int(value):,}"
    if not math.isfinite(value):
        return str(float(value))
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def label(metric: str) -> str:
    """A metric's name for reading: "knn_top1" -> "kNN top-1" (the hyphen does not break), "lr" -> "learning rate"."""
    words = {
        "knn": "kNN",
        "top1": "top\u20111",
        "top5": "top\u20115",
        "rankme": "RankMe",
        "zeroshot": "zero-shot",
        "ema": "EMA",
    }
    words |= {"lr": "learning rate", "mfu": "MFU", "std": "std. dev.", "retrieval200": "retrieval of 200"}
    words |= {f"r{k}": f"R@{k}" for k in (1, 5, 10)}
    return " ".join(words.get(w, w) for w in metric.replace("/", " / ").replace("_", " ").split())


# --------------------------------------------------------------------------------------------------
# Curves
# --------------------------------------------------------------------------------------------------


def read_metrics(source) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """metrics.jsonl, by path or as dicts -> {name: (steps, values)}, non-finite values kept as gaps. A half-written
    last line is left out.

    A step written twice, as after a restart, counts as written last.
    """
    if isinstance(source, (str, os.PathLike)):
        records = metrics.read(source)
    else:
        records = source
    points: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step" and "step" in record and _is_number(value):
                points.setdefault(name, {})[int(record["step"])] = float(value)
    ordered = {name: sorted(p.items()) for name, p in points.items()}
    return {name: (np.array([s for s, _ in p]), np.array([v for _, v in p])) for name, p in ordered.items()}


def curves(series: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """{name: (steps, values)} -> a chart each: losses and evaluations in view, the rest (speed, schedules, ...)
    folded away.
    """
    moving = {k: v for k, v in series.items() if len(v[0]) > 1}
    front = sorted((k for k in moving if TELLING.search(k)), key=lambda k: k != "loss")
    back = sorted(k for k in moving if k not in front)
    if not moving:
        return "<p class=hint>The run wrote fewer than two points of any metric.</p>"
    out = _charts({k: moving[k] for k in front})
    if back:
        inner = _charts({k: moving[k] for k in back})
        heading = f"Schedules, speed and the rest ({len(back)})"
        out += f"<details{'' if front else ' open'}><summary>{heading}</summary>{inner}</details>"
    return out


def _together(runs: list[dict]) -> str:
    """Metrics that two runs or more have, their lines over one another; six runs at the most, which is as many as eyes tell apart."""
    series = {run["name"]: read_metrics(run["metrics"]) for run in runs[:6] if run.get("metrics") is not None}
    shared = {}
    for name, metrics_of in series.items():
        for metric, points in metrics_of.items():
            if TELLING.search(metric) and len(points[0]) > 1:
                shared.setdefault(metric, {})[name] = points
    charts = "".join(line_chart(lines, title=label(metric)) for metric, lines in sorted(shared.items()) if len(lines) > 1)
    return f"<div class=charts>{charts}</div>" if charts else ""


def _charts(series: dict) -> str:
    charts = "".join(line_chart({"": points}, title=label(name)) for name, points in series.items())
    return f"<div class=charts>{charts}</div>" if charts else ""


def line_chart(series: dict[str, tuple[np.ndarray, np.ndarray]], *, title: str, x_label: str = "step") -> str:
    """{name: (x, y)}, up to six lines over one another, -> one chart as inline SVG with the last values beside its
    title.

    matplotlib draws in marker colours, which are then replaced by the page's: so one SVG serves light and dark.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    ink, faint = "#010101", "#020202"
    lines = [f"#03030{i}" for i in range(1, 7)]
    figure = Figure(figsize=(3.6, 2.0))
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0.13, 0.15, 0.84, 0.80))
    for (x, y), colour in zip(series.values(), lines, strict=False):
        marker = "o" if len(x) < 12 else None
        y = np.where(np.isfinite(y), y, np.nan)
        axes.plot(x, y, color=colour, linewidth=1.6, marker=marker, markersize=3, solid_capstyle="round", clip_on=False)
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(faint)
    axes.grid(axis="y", color=faint, linewidth=0.6)
    axes.tick_params(length=0, labelsize=8, labelcolor=ink)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    svg = _svg(figure)
    for i, marker in enumerate(lines, 1):
        svg = svg.replace(marker, f"var(--line-{i})")
    svg = svg.replace(ink, "var(--muted)").replace(faint, "var(--rule)")
    last = [(name, y[np.isfinite(y)]) for name, (_, y) in series.items()]
    ends = ", ".join(f"{name + ' ' if name else ''}{number(y[-1])}" for name, y in last if len(y))
    alt = _text(f"{title} against {x_label}; last: {ends}", quote=True)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{alt}" ', 1)
    legend = ""
    if len(series) > 1:
        legend = "".join(f'<span><i style="background:var(--line-{i})"></i>{_text(n)}</span>' for i, n in enumerate(series, 1))
        legend = f"<p class=legend>{legend}</p>"
    heading = f"<figcaption>{_text(title)}<span class=last>{_text(ends)}</span></figcaption>"
    return f"<figure class=chart>{heading}{svg}{legend}</figure>"


def _svg(figure) -> str:
    """A matplotlib figure as SVG to stand inside HTML: text as text, no header, no metadata, no ids that several
    charts would share.
    """
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ssljax"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\s(xmlns|xmlns:xlink|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r"<svg [^>]*viewBox=\"([^\"]+)\"[^>]*>", r'<svg viewBox="\1">', svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", svg)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    return re.sub(r' id="([^"]+)"', lambda m: m.group(0) if m.group(1) in used else "", svg)


# --------------------------------------------------------------------------------------------------
# Pictures
# --------------------------------------------------------------------------------------------------


def augmented_views(images: np.ndarray, *, group: str = "views") -> str:
    """uint8 (N, V, S, S, 3) -> a row an example, its views side by side."""
    rows = []
    for i, views in enumerate(np.asarray(images)[:MAX_ROWS]):
        rows.append("".join(image(v, f"example {i + 1}, {group} {j + 1}") for j, v in enumerate(views)))
    caption = f"<p class=hint>{_text(label(group))}: each group of {images.shape[1]} is one example.</p>"
    return f"{caption}<div class=groups>{''.join(f'<div class=group>{row}</div>' for row in rows)}</div>"


def nearest_neighbours(query, neighbours, distances, query_labels: Sequence | None = None, labels: Sequence | None = None) -> str:
    """Each query picture and its neighbours, nearest first, with the distance below; a label that is not the query's
    is marked.

    query uint8 (Q, S, S, 3), neighbours uint8 (Q, K, S, S, 3), distances (Q, K); query_labels (Q,) and labels (Q, K):
    any that print.
    """
    rows = []
    for i in range(min(len(query), MAX_ROWS)):
        of_query = "" if query_labels is None else str(query_labels[i])
        cells = [_cell(image(query[i], f"query {i + 1} {of_query}".strip()), of_query or "query", kind="query")]
        for j in range(len(neighbours[i])):
            name = "" if labels is None else str(labels[i][j])
            wrong = labels is not None and query_labels is not None and name != of_query
            alt = f"neighbour {j + 1} of query {i + 1}: {name} at distance {float(distances[i][j]):.2f}"
            mark, kind = (f"✗ {name}", "wrong") if wrong else (name, "")
            cells.append(_cell(image(neighbours[i][j], alt), f"{float(distances[i][j]):.2f}", mark, kind))
        rows.append(f"<div class=strip>{''.join(cells)}</div>")
    caption = "Left, a test picture; then the train pictures of nearest features, and their distance."
    if labels is not None and query_labels is not None:
        caption += " ✗ marks another label."
    return f"<p class=hint>{caption}</p>{''.join(rows)}"


def zero_shot_examples(images, captions: Sequence[Sequence[str]], scores, truth: Sequence[str] | None = None) -> str:
    """Each picture with its best captions and their scores as bars. images uint8 (N, S, S, 3), captions (N, K),
    scores (N, K) in [0, 1], truth (N,).
    """
    out = []
    for i in range(min(len(images), MAX_ROWS)):
        bars = []
        for text, score in zip(captions[i], np.asarray(scores[i], float), strict=True):
            right = truth is not None and text == truth[i]
            width = 100 * min(max(float(score), 0.0), 1.0)
            kind, mark = (" class=right", " ✓") if right else ("", "")
            line = f"<span class=captionline><span>{_text(text)}{mark}</span><b>{score:.2f}</b></span>"
            bars.append(f'<li{kind}>{line}<span class=track><span style="width:{width:.1f}%"></span></span></li>')
        known = f"<p class=hint>truth: {_text(truth[i])}</p>" if truth is not None else ""
        alt = f"example {i + 1}" + (f": {truth[i]}" if truth is not None else "")
        out.append(f"<div class=zeroshot>{image(images[i], alt)}<div>{known}<ol>{''.join(bars)}</ol></div></div>")
    return f"<div class=zeroshots>{''.join(out)}</div>"


def reconstructions(original, reconstruction, masked=None) -> str:
    """Two or three pictures an example, side by side: original | masked | reconstruction, each uint8 (N, S, S, 3)."""
    masks = {} if masked is None else {"masked": masked}
    return _side_by_side({"original": original, **masks, "rebuilt": reconstruction})


def patch_features(images, features) -> str:
    """What an encoder tells patches apart by: their features' first three principal components, over all pictures shown, as red, green
    and blue. images uint8 (N, S, S, 3), features float (N, patches, D), the patches row by row."""
    features = np.asarray(features, np.float64)[:MAX_ROWS]
    flat = features.reshape(-1, features.shape[-1])
    flat = flat - flat.mean(0)
    components = np.linalg.svd(flat, full_matrices=False)[2][:3]
    components = components * np.sign(components[np.arange(len(components)), np.abs(components).argmax(1)])[:, None]  # SVD leaves it open
    colours = np.zeros((len(flat), 3))
    colours[:, : len(components)] = flat @ components.T
    low, high = np.percentile(colours, (2, 98), axis=0)
    colours = np.clip((colours - low) / np.maximum(high - low, 1e-12), 0, 1)
    side = round(features.shape[1] ** 0.5)
    colours = (255 * colours).astype(np.uint8).reshape(len(features), side, side, 3)
    scale = max(np.shape(images)[1] // side, 1)
    caption = "<p class=hint>Features of each patch, their first three principal components as red, green and blue.</p>"
    return caption + _side_by_side({"picture": images, "features": colours.repeat(scale, 1).repeat(scale, 2)})


def codebook(counts) -> str:
    """How evenly a tokenizer's words are used: counts (K,), how many patches each was said of."""
    counts = np.sort(np.asarray(counts, np.float64))[::-1]
    share = counts / max(counts.sum(), 1)
    entropy = float(-(share[share > 0] * np.log(share[share > 0])).sum())
    used = int((counts > 0).sum())
    caption = f"{used} of {len(counts)} words are used ({used / len(counts):.0%}); as even as {np.exp(entropy):.0f} words used alike."
    chart = line_chart(
        {"share of patches": (np.arange(1, len(share) + 1), share)}, title="share of patches, by word", x_label="word, by rank"
    )
    return f"<p class=hint>{caption}</p><div class=charts>{chart}</div>"


def attention_maps(images, maps) -> str:
    """Where the class token looks in the last block, the mean of its heads and the three that differ most from it, bright over the dimmed
    picture. images uint8 (N, S, S, 3), maps float (N, heads, h, w)."""
    images, maps = np.asarray(images)[:MAX_ROWS], np.asarray(maps, np.float64)[:MAX_ROWS]
    mean = maps.mean(1, keepdims=True)
    apart = np.abs(maps - mean).sum((0, 2, 3)).argsort()[::-1][:3]
    shown = {"picture": images}
    for name, one in (("mean of heads", mean[:, 0]), *((f"head {head + 1}", maps[:, head]) for head in sorted(apart))):
        heat = one / np.maximum(one.max((1, 2), keepdims=True), 1e-12)
        scale = [side // part for side, part in zip(images.shape[1:3], one.shape[1:], strict=True)]
        heat = heat.repeat(max(scale[0], 1), 1).repeat(max(scale[1], 1), 2)[:, : images.shape[1], : images.shape[2], None]
        shown[name] = (images * (0.15 + 0.85 * heat)).astype(np.uint8) if heat.shape[1:3] == images.shape[1:3] else images
    return "<p class=hint>Bright: where the class token of the last block looks.</p>" + _side_by_side(shown)


def confusion(table, names) -> str:
    """Share of each true class (a line) that is taken for each other (columns), by shade. table: counts (K, K); names: K."""
    table = np.asarray(table, np.float64)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    head = "".join(f"<th scope=col><span>{_text(name)}</span></th>" for name in names)
    lines = []
    for i, name in enumerate(names):
        cells = "".join(
            f'<td style="background:color-mix(in srgb, var(--accent) {100 * value:.0f}%, transparent)'
            f'{";color:var(--paper)" if value > 0.6 else ""}" '
            f'title="{_text(f"{name} taken for {names[j]}: {value:.0%}", quote=True)}">'
            f"{f'{100 * value:.0f}' if value >= 0.005 else ''}</td>"
            for j, value in enumerate(share[i])
        )
        lines.append(f"<tr><th scope=row>{_text(name)}</th>{cells}</tr>")
    caption = "<p class=hint>Nearest neighbours' answers, per cent of each true class (a line).</p>"
    head = f"<thead><tr><th></th>{head}</tr></thead>"
    return f"{caption}<div class=scroll tabindex=0><table class=confusion>{head}<tbody>{''.join(lines)}</tbody></table></div>"


def feature_map(places, labels, names) -> str:
    """Examples as dots, near where their features are alike: places (N, 2), labels int (N,), names of the classes."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.2))
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    colours = colormaps["tab20"].colors
    places, labels = np.asarray(places), np.asarray(labels)
    legend = []
    for k, name in enumerate(names):
        colour = "#" + "".join(f"{round(255 * part):02x}" for part in colours[k % len(colours)])
        axes.scatter(*places[labels == k].T, s=9, color=colour, linewidths=0, alpha=0.85)
        legend.append(f'<span><i style="background:{colour}"></i>{_text(name)}</span>')
    axes.set_axis_off()
    figure.patch.set_visible(False)
    svg = _svg(figure).replace("<svg ", '<svg role="img" aria-label="features of test pictures in two dimensions, coloured by class" ', 1)
    return f"<p class=hint>t-SNE of the features of test pictures.</p><figure class=map>{svg}<p class=legend>{''.join(legend)}</p></figure>"


def _side_by_side(pictures: dict[str, np.ndarray]) -> str:
    """{title: uint8 (N, S, S, 3)} -> a group an example, one picture of each."""
    rows = []
    for i in range(min(MAX_ROWS, *map(len, pictures.values()))):
        cells = "".join(_cell(image(images[i], f"example {i + 1}, {name}"), name) for name, images in pictures.items())
        rows.append(f"<div class=group>{cells}</div>")
    return f"<div class=groups>{''.join(rows)}</div>"


def image(pixels: np.ndarray, alt: str) -> str:
    """uint8 (H, W, 3) or (H, W) -> an <img> that carries its own data: PNG, or JPEG from 128 pixels on."""
    from PIL import Image

    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8:
        raise ValueError(f"pictures are uint8, got {pixels.dtype}")
    out, kind = io.BytesIO(), "png" if max(pixels.shape[:2]) < 128 else "jpeg"
    Image.fromarray(pixels).save(out, format=kind, **({"optimize": True} if kind == "png" else {"quality": 88}))
    data = base64.b64encode(out.getvalue()).decode("ascii")
    crisp = " class=crisp" if kind == "png" else ""
    size = f"width={pixels.shape[1]} height={pixels.shape[0]}"
    return f'<img{crisp} src="data:image/{kind};base64,{data}" alt="{_text(alt, quote=True)}" {size}>'


def _cell(picture: str, line: str, second: str = "", kind: str = "") -> str:
    more = f"<small>{_text(second)}</small>" if second else ""
    return f'<figure class="cell {kind}">{picture}<figcaption>{_text(line)}{more}</figcaption></figure>'


def _section(heading: str, inner: str, name: str = "", level: int = 3) -> str:
    anchor = f' id="{name}"' if name else ""
    return f"<section{anchor}><h{level}>{_text(heading)}</h{level}>{inner}</section>"


def _text(value, quote: bool = False) -> str:
    return html.escape(str(value), quote=quote)


def _is_number(value) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


# --------------------------------------------------------------------------------------------------
# The page
# --------------------------------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""

STYLE = """
:root {
  --paper: #fdfcfa; --ink: #1d1f23; --muted: #62666e; --rule: #dedcd6; --panel: #f5f3ee;
  --accent: #1f5f9e; --right: #2b7a4b; --wrong: #b3402a;
  --line-1: #1f5f9e; --line-2: #c2591b; --line-3: #2b7a4b; --line-4: #8a4f9e; --line-5: #9a7400; --line-6: #5b6470;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --ink: #e6e4df; --muted: #9fa3aa; --rule: #34373c; --panel: #1d2024;
    --accent: #7db4ea; --right: #74c795; --wrong: #f08b72;
    --line-1: #7db4ea; --line-2: #f0a163; --line-3: #74c795; --line-4: #c9a0dc; --line-5: #d9bd5c; --line-6: #a9b2bd;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 96px; }
h1, h2, h3 { font-family: Charter, "Iowan Old Style", Georgia, "Noto Serif", serif; font-weight: 600; }
h1, h2, h3 { line-height: 1.2; text-wrap: balance; overflow-wrap: anywhere; }
h1 { font-size: 2.1rem; margin: 0 0 8px; }
h2 { font-size: 1.5rem; margin: 64px 0 12px; padding-top: 16px; border-top: 2px solid var(--ink); }
h3 { font-size: 1.12rem; margin: 40px 0 12px; }
p { margin: 0 0 12px; max-width: 68ch; }
ul { margin: 0; padding-left: 20px; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: 8px 20px; margin-top: 16px; }
figure { margin: 0; }
.lede { color: var(--muted); font-size: 1.05rem; }
.hint { color: var(--muted); font-size: .86rem; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; min-width: 100%; }
th, td { padding: 7px 0 7px 22px; text-align: right; white-space: nowrap; }
thead th { color: var(--muted); font-weight: 500; font-size: .82rem; }
thead th { vertical-align: bottom; white-space: normal; min-width: 72px; }
th:first-child { text-align: left; font-weight: 400; padding-left: 0; }
th:first-child { position: sticky; left: 0; background: var(--paper); }
tr.run > th { font-weight: 600; border-top: 1px solid var(--rule); padding-top: 12px; }
tbody tr:last-child > * { border-bottom: 1px solid var(--rule); }
.blank { color: var(--muted); }

.confusion th span { writing-mode: vertical-rl; font-weight: 400; }
.confusion th { padding: 3px 4px; }
.confusion td { min-width: 2.1em; text-align: center; padding: 3px; font-size: .78rem; }
.map { max-width: 720px; margin: 0; }
.map svg { display: block; width: 100%; height: auto; }
.map .legend i { width: 10px; height: 10px; border-radius: 50%; }
.cards { display: flex; flex-wrap: wrap; gap: 16px 40px; }
.card { max-width: 300px; }
.cardname { margin: 0; color: var(--muted); font-size: .86rem; }
.figure { font-size: 1.9rem; line-height: 1.2; margin: 0 0 4px; font-variant-numeric: tabular-nums; }

.charts { display: grid; gap: 24px 28px; margin: 12px 0; }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; }
.chart svg { font-family: inherit; font-variant-numeric: tabular-nums; }
.chart figcaption { display: flex; justify-content: space-between; gap: 12px; }
.chart figcaption { font-size: .88rem; font-weight: 600; margin-bottom: 4px; }
.last { color: var(--accent); font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: .82rem; color: var(--muted); margin: 6px 0 0; }
.legend i { display: inline-block; width: 14px; height: 3px; margin-right: 6px; vertical-align: middle; }
details { margin: 24px 0; border-top: 1px solid var(--rule); padding-top: 10px; }
summary { cursor: pointer; color: var(--accent); font-size: .93rem; }
pre { overflow-x: auto; background: var(--panel); padding: 16px; }
pre { font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }

img { display: block; width: 82px; height: auto; border-radius: 2px; background: var(--panel); }
img.crisp { image-rendering: pixelated; }
.groups { display: flex; flex-wrap: wrap; gap: 18px 26px; margin-bottom: 20px; }
.group { display: flex; flex-wrap: wrap; gap: 4px; max-width: 100%; }
.strip { display: flex; flex-wrap: wrap; gap: 8px 6px; padding: 10px 0; border-top: 1px solid var(--rule); }
.cell { width: 82px; }
.cell figcaption { font-size: .72rem; line-height: 1.3; color: var(--muted); margin-top: 3px; }
.cell figcaption { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.cell small { display: block; font-size: 1em; }
.query { margin-right: 14px; }
.query figcaption { color: var(--ink); font-weight: 600; }
.wrong small { color: var(--wrong); }

.zeroshots { display: grid; gap: 28px 36px; }
.zeroshots { grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); }
.zeroshot { display: grid; grid-template-columns: 96px minmax(0, 1fr); gap: 16px; align-items: start; }
.zeroshot img { width: 100%; }
.zeroshot .hint { margin: 0 0 4px; }
ol { list-style: none; margin: 0; padding: 0; }
ol li { margin-bottom: 7px; font-size: .86rem; line-height: 1.35; }
.captionline { display: flex; justify-content: space-between; gap: 10px; }
.captionline b { font-weight: 500; font-variant-numeric: tabular-nums; }
.track { display: block; height: 4px; background: var(--rule); margin-top: 3px; }
.track span { display: block; height: 100%; background: var(--line-6); }
.right .track span { background: var(--right); }
.right .captionline { color: var(--right); font-weight: 600; }

@media (max-width: 560px) {
  main { padding: 24px 16px 64px; }
  h1 { font-size: 1.7rem; }
  h2 { font-size: 1.3rem; margin-top: 48px; }
  th, td { padding-left: 14px; }
  .zeroshot { grid-template-columns: 72px minmax(0, 1fr); }
}
"""


def main(argv):
    folders = cli.parse(argv, FLAGS, __doc__, words=True)
    if not folders:
        raise UserError("which runs? python -m ssljax.report DIR..., each the --workdir of a run of train.py")
    runs = []
    for folder in map(pathlib.Path, folders):
        path = folder / "metrics.jsonl"
        if not path.exists():
            raise UserError(f"{folder} has no metrics.jsonl: expected the --workdir of a run of train.py that has logged a step")
        last = max((row["step"] for row in metrics.read(path) if "step" in row), default=0)
        runs.append({"name": folder.name, "metrics": str(path), "summary": f"{folder}, logged up to step {last}"})
    write(FLAGS.out, runs, [])
    print(f"wrote {FLAGS.out}")


if __name__ == "__main__":
    cli.command(main)
