"""What the tests of real servers share: where one is installed, and how it is seen to come up."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from remediator.services import ServiceDriver
from tests.waiting import poll

ROOT = Path(__file__).resolve().parents[3]


def python_of(variable: str, venv: str) -> Path:
    """The Python that has the server: of the environment, or of `.tools`."""
    return Path(os.environ.get(variable) or ROOT / ".tools" / venv / "bin/python")


def only_where(
    server: str, package: str, python: Path, *, seconds: int
) -> list[pytest.MarkDecorator]:
    """Marks for a module: it is skipped, and says what for, without its server."""
    missing = [
        what
        for what, is_there in (
            ("REAL_SERVERS=1", os.environ.get("REAL_SERVERS")),
            (f"a Python with {package} at {python}", python.is_file()),
        )
        if not is_there
    ]
    reason = f"real {server} NOT tested: no {', no '.join(missing)}"
    return [pytest.mark.skipif(bool(missing), reason=reason), pytest.mark.timeout(seconds)]


def states_until_ready(
    driver: ServiceDriver,
    process: subprocess.Popen[bytes],
    log: Callable[[], str],
    seconds: float,
) -> set[str]:
    """What probes saw until the server was ready."""
    seen: set[str] = set()

    def is_ready() -> bool:
        assert process.poll() is None, log()
        seen.add(driver.probe().state)
        return "ready" in seen

    poll(is_ready, log, seconds)
    return seen
