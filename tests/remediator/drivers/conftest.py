from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def install_program(tmp_path: Path) -> Callable[[ModuleType, str], Path]:
    """Copy a stand-in module into a folder of the test as a program of that name."""

    def install(module: ModuleType, name: str) -> Path:
        assert module.__file__ is not None
        program = tmp_path / name
        # -I -S: no site packages, so that a call costs 15 ms and not 60.
        program.write_text(f"#!{sys.executable} -IS\n" + Path(module.__file__).read_text())
        program.chmod(0o755)
        return program

    return install
