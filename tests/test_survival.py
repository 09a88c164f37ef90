"""The faults of launch/bench/faults.py that continuous integration sees: two real processes, killed, stopped, their files damaged."""

import json
import subprocess
import sys

from tests.conftest import ROOT


def test_a_run_that_is_killed_stopped_or_damaged_ends_with_the_same_bits(tmp_path):
    """MoCo: a teacher, a queue, batch statistics, schedules."""
    command = [sys.executable, "launch/bench/faults.py", "--quick", "--method", "moco", "--json", "--out", str(tmp_path / "rows.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["fault"] for row in rows] == ["whole", "kills", "sigterm", "flipped"]
    short = [f"{row['fault']} {row['outcome']}: {row['detail']}" for row in rows if row["outcome"] != "holds"]
    assert not short, "\n".join(short)
    assert done.returncode == 0
