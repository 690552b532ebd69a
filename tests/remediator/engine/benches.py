"""Benches of a test: as many as it asks for, closed when it is over."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tests.remediator.engine.bench import Bench

AnyBench = TypeVar("AnyBench", bound=Bench)


@contextlib.contextmanager
def benches(folder: Path, kind: type[AnyBench]) -> Iterator[Callable[..., AnyBench]]:
    """Yields what makes one, each over a state directory of its own."""
    made: list[AnyBench] = []

    def make(**more: object) -> AnyBench:
        made.append(kind(folder / f"state{len(made)}", **more))
        return made[-1]

    yield make
    for one in made:
        one.close()
