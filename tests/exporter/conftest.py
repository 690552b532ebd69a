from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.exporter.fakes import SimulatorServer


@pytest.fixture(scope="session", autouse=True)
def busy_machine() -> Iterator[None]:
    """A disk that answers is waited for, however busy the machine is."""
    with pytest.MonkeyPatch.context() as patched:
        for module in ("exporter.host", "exporter.inventory", "serving.live"):
            patched.setattr(f"{module}._PATIENCE_SECONDS", 30.0)
        yield


@pytest.fixture
def simulator() -> Iterator[SimulatorServer]:
    server = SimulatorServer()
    yield server
    server.close()
