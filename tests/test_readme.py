"""What the README states is there."""

import re

import pytest

from ssljax import method
from tests.conftest import ROOT

pytestmark = pytest.mark.quick
README = (ROOT / "README.md").read_text()


def test_every_method_has_a_row_with_its_file_configs_and_lines():
    for name in method.available():
        row = next((line for line in README.splitlines() if line.startswith(f"| {name} |")), None)
        assert row, f"no row for {name}"
        lines = len((ROOT / "ssljax" / "methods" / f"{name}.py").read_text().splitlines())
        assert f"| {lines} |" in row, f"{name} has {lines} lines"


def test_every_file_it_names_exists():
    for path in set(re.findall(r"(?:ssljax|configs|launch|tests)/[\w/.]+\.(?:py|sh|sbatch|png|jsonl)", README)):
        if path != "ssljax/methods/mine.py":
            assert (ROOT / path).exists(), path
