from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.remediator.engine.bench import Bench
from tests.remediator.engine.benches import benches


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    with benches(tmp_path, Bench) as make:
        yield make


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    """One card, everything allowed, mode auto."""
    return make_bench()
