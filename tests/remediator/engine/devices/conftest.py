from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.remediator.engine.benches import benches
from tests.remediator.engine.device_scene import DeviceBench


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., DeviceBench]]:
    with benches(tmp_path, DeviceBench) as make:
        yield make


@pytest.fixture
def bench(make: Callable[..., DeviceBench]) -> DeviceBench:
    """One card that can be reset, and a service on it with a model."""
    one = make()
    one.drivers["ollama"].models = {"llama"}
    one.prober.probe(one.world.services["ollama"])
    return one
