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


@pytest.mark.parametrize(
    "module", ["remediator.helper.command", "remediator.gpu_control.jetson_call"]
)
def test_what_runs_as_root_loads_little(module: str) -> None:
    script = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = done.stdout.split()
    assert {name.split(".")[0] for name in loaded} & FORBIDDEN == set()
    ours = {name.split(".")[1] for name in loaded if name.startswith("remediator.")}
    assert ours & OURS == set()
    assert not any(name.startswith("remediator.gpu_control.simulated") for name in loaded)


def test_a_call_to_the_driver_loads_the_driver_library_and_no_more() -> None:
    script = "import sys, remediator.gpu_control.nvml_call; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded & (FORBIDDEN | {"yaml"}) == {"pynvml"}
