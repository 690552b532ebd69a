"""The crash sweep, bounded: some points of each playbook. Whole: `make crash-sweep`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("way", ["kill", "ENOSPC from then on"])
def test_a_few_points_of_each_playbook(way: str) -> None:
    argv = [sys.executable, "-m", "tests.remediator.crash_sweep", "--points=3", f"--way={way}"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken promises" in done.stdout
