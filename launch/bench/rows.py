"""What the benchmarks share: the time of a call, what a row says of where it comes from, and how rows are kept and told."""

import json
import pathlib
import platform
import re
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def commit():
    """Of this code, as git abbreviates it."""
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def processor():
    """The CPU's model name."""
    try:
        return re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())[1].strip()
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def origin():
    """{"device", "cpu", "jax", "commit"} of this machine and this code."""
    import jax

    return {"device": jax.devices()[0].device_kind, "cpu": processor(), "jax": jax.__version__, "commit": commit()}


def keep(rows, out):
    """Appends rows to a .jsonl file."""
    out = pathlib.Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def stored(out):
    """The rows of a .jsonl file, none where there is no file."""
    out = pathlib.Path(out)
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def markdown(head, cells):
    """A table: head, the columns' names; cells, a list of strings a row."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in cells])


def seconds(call):
    """Of one call, which returns when its work is done."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
