"""What the README states is there."""

import importlib.util
import re

import pytest

from ssljax import method
from tests.conftest import ROOT

pytestmark = pytest.mark.quick
README = (ROOT / "README.md").read_text()


def test_the_table_of_methods_is_what_the_files_say():
    spec = importlib.util.spec_from_file_location("methods_table", ROOT / "launch" / "methods_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stated = README.partition(module.MARKS[0])[2].partition(module.MARKS[1])[0].strip()
    assert stated == module.table(), "run: python launch/methods_table.py --write"
    for name in method.available():
        assert len((ROOT / "ssljax" / "methods" / f"{name}.py").read_text().splitlines()) <= 150, name


def test_every_file_it_names_exists():
    for path in set(re.findall(r"(?:ssljax|configs|launch|tests)/[\w/.]+\.(?:py|sh|sbatch|png|jsonl)", README)):
        if path != "ssljax/methods/mine.py":
            assert (ROOT / path).exists(), path
