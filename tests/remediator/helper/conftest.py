from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remediator.helper.desk import Desk
from tests.remediator.drivers.conftest import install_program
from tests.remediator.helper.support import Cards, Running, desk_of

__all__ = ["install_program"]


@pytest.fixture
def cards() -> Cards:
    return Cards()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start a helper over a desk, for this user or another one."""
    started: list[Running] = []

    def start(desk: Desk | str, uid: int | None = os.geteuid()) -> Running:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Running(folder, desk, uid))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def helper(serve: Callable[..., Running], cards: Cards, tmp_path: Path) -> Running:
    return serve(desk_of(tmp_path, cards))
