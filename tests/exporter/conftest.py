from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.exporter.fakes import SimulatorServer


@pytest.fixture
def simulator() -> Iterator[SimulatorServer]:
    server = SimulatorServer()
    yield server
    server.close()
