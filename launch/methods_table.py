"""The README's table of methods, from the files: docstrings, lines, configs, and the rows of launch/bench/results/learning.jsonl.

python launch/methods_table.py            # prints it
python launch/methods_table.py --write    # puts it into README.md, between its two marks
"""

import ast
import importlib.util
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
MARKS = ("<!-- methods -->", "<!-- /methods -->")
HEAD = (
    "method",
    "paper",
    "file",
    "lines",
    "golden figures",
    "small config",
    "learns (mean of the seeds)",
    "paper-scale config",
    "the paper's own result",
)

# Families of figures in tests/golden that are of a method's loss or heads, where they are not called as it is.
FIGURES = {
    "simclr": ("simclr_ntxent", "simclr_multi_positive", "ntxentloss"), "clip": ("clip", "clip_softmax", "openclip"),
    "moco": ("moco_infonce_queue", "queue"), "dcl": ("dcl", "dclw"), "vicreg": ("vicreg", "vicreg_paper"),
    "metric": ("contrastive", "triplet", "lifted_structure", "npair", "soft_nearest_neighbour", "multisimilarityloss", "ncaloss",
               "ntxent_by_labels", "macl"),
    "deepcluster_v2": ("deepclusterv2",), "deepcluster": ("clustering",), "swav": ("swav", "sinkhorn"), "simsiam": ("negative_cosine",),
    "dinov2": ("dinov2", "dinov2_cls"), "ibot": ("ibot_full", "ibot_patch"), "siglip": ("siglip", "siglip_flax"),
    "ijepa": ("ijepa", "ijepa_original"), "mae": ("mae", "masking", "patchify"),
}  # fmt: skip


def figures():
    """{method: how many entries of tests/golden are its own}; tests/test_golden.py fails unless every one is met."""
    families = [entry["family"] for entry in json.loads((ROOT / "tests/golden/index.json").read_text())["entries"]]
    return lambda method: sum(map(families.count, FIGURES.get(method, (method,))))


def configs_of():
    """{method: [(path, docstring, whether it is small)]}."""
    from ssljax import config

    found = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.setdefault(config.load(path).method.name, []).append((path, module.__doc__, hasattr(module, "LEARNING")))
    return found


def learned():
    """{config file: "photograph: kNN 0.60, linear 0.65 (random 0.32, 0.46); ..."} of the mean of the seeds."""
    from launch.bench.rows import stored

    runs = {}
    for row in stored(ROOT / "launch/bench/results/learning.jsonl"):
        runs.setdefault(row["config"], []).append(row)
    texts = {}
    for name, group in runs.items():
        mean = lambda key, group=group: sum(row[key] for row in group) / len(group)  # noqa: E731
        text = f"{group[0]['label']}: kNN {mean('knn_top1'):.2f}, linear {mean('linear_top1'):.2f}"
        text += f" (random {mean('random_knn_top1'):.2f}, {mean('random_linear_top1'):.2f})"
        if "mean_fill_ratio" in group[0]:
            text += f", masked error {mean('mean_fill_ratio'):.2f} of the mean's"
        if "test_mean_colour_ratio" in group[0]:
            text += f", colour error {mean('test_mean_colour_ratio'):.2f} of the mean colour's"
        if "zeroshot_colour" in group[0]:
            text += f", zero-shot colour {mean('zeroshot_colour'):.2f}, photograph {mean('zeroshot_photograph'):.2f}"
            text += f", R@1 of 200: {mean('retrieval200_image_to_text_r1'):.2f}, {mean('retrieval200_text_to_image_r1'):.2f}"
        texts.setdefault(name.partition(":")[0], []).append(text)
    return {name: "; ".join(each) for name, each in texts.items()}


def paper_of(doc):
    """The first docstring line's "Name (Authors Year)" and arXiv id -> a Markdown link."""
    who = re.search(r"\(([^()]*?\d{4}[a-z]?)[^()]*\)", doc)
    number = re.search(r"arXiv[: ]?(\d{4}\.\d{4,5})", doc)
    text = who[1].partition(",")[0].strip() if who else ""
    return f"[{text}](https://arxiv.org/abs/{number[1]})" if number else text


def result_of(doc):
    """What the config's docstring says behind "Paper:", on one line."""
    found = re.search(r"Paper: (.*?)(?:\n\n|\nPlan: |\Z)", doc, re.DOTALL)
    text = " ".join(found[1].split()) if found else ""
    return re.split(r"(?<=[a-z0-9%)])\. ", text)[0].rstrip(".")  # its first sentence


def table():
    from ssljax import method

    configs, numbers, golden = configs_of(), learned(), figures()
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for name in method.available():
        path = ROOT / "ssljax" / "methods" / f"{name}.py"
        source = path.read_text()
        own = configs.get(name, [])
        link = lambda p: f"[{p.name}](configs/{p.name})"  # noqa: E731
        small, large = [p for p, _, s in own if s], [(p, d) for p, d, s in own if not s]
        cells = (
            name,
            paper_of(ast.get_docstring(ast.parse(source))),
            f"[ssljax/methods/{name}.py](ssljax/methods/{name}.py)",
            str(len(source.splitlines())),
            str(golden(name) or ""),
            ", ".join(map(link, small)),
            "; ".join(numbers[p.name] for p in small if p.name in numbers),
            ", ".join(link(p) for p, _ in large),
            "; ".join(filter(None, (result_of(d) for _, d in large))),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv):
    text = table()
    if "--write" in argv:
        readme = (ROOT / "README.md").read_text()
        before, _, rest = readme.partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        (ROOT / "README.md").write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")
    else:
        print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
