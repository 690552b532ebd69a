from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.remediator.engine.bench import Bench


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Benches over one state directory; closed afterwards."""
    made: list[Bench] = []

    def make(**more: object) -> Bench:
        made.append(Bench(tmp_path / f"state{len(made)}", **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    """One card, everything allowed, mode auto."""
    return make_bench()
