"""What runs as root loads little: no HTTP in either direction, no database, no decision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FORBIDDEN = {
    "flask", "waitress", "werkzeug", "requests", "urllib3", "http", "sqlite3", "psutil",
    "prometheus_client", "ssl", "pynvml", "exporter", "simulator",
}  # fmt: skip
OURS = {"app", "cli", "engine", "http", "intake", "playbooks", "policy", "store", "web", "world"}


def loaded_with(module: str) -> list[str]:
    """What is loaded in a Python that imports this and nothing else."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys, {module}; print(*sys.modules)"],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    "module", ["remediator.helper.command", "remediator.gpu_control.jetson_call"]
)
def test_what_runs_as_root_loads_little(module: str) -> None:
    loaded = loaded_with(module)
    assert {name.split(".")[0] for name in loaded} & FORBIDDEN == set()
    ours = {name.split(".")[1] for name in loaded if name.startswith("remediator.")}
    assert ours & OURS == set()
    assert not any(name.startswith("remediator.gpu_control.simulated") for name in loaded)


def test_a_call_to_the_driver_loads_the_driver_library_and_no_more() -> None:
    names = loaded_with("remediator.gpu_control.nvml_call")
    loaded = {name.split(".")[0] for name in names}
    assert loaded & (FORBIDDEN | {"yaml"}) == {"pynvml"}
