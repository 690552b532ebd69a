"""The crash sweep, bounded: a few points of each playbook, and a disk that stays full under a hot card."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "which",
    [
        ["--points=2", "--way=kill"],
        ["--points=3", "--way=ENOSPC from then on", "--story=emergency-stop"],
        ["--points=3", "--way=unsynced lost", "--story=first start"],
    ],
    ids=["killed", "full", "power cut"],
)
def test_no_promise_is_broken_at_a_few_points(which: list[str]) -> None:
    argv = [sys.executable, "-m", "tests.remediator.crash_sweep", *which]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken promises" in done.stdout
