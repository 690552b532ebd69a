"""A card that its service heats, and a store that cannot be written."""

from __future__ import annotations

import pytest

from remediator.errors import StorageError
from tests.remediator.engine.bench import Bench

SHUTDOWN = "GPUTemperatureShutdown"


def hot(bench: Bench) -> Bench:
    for card in bench.cards.values():
        card.celsius = lambda watts: (
            91.0 if any(m.identity for m in bench.managers.values()) else 70.0
        )
    return bench


def fail(bench: Bench) -> None:
    now = bench.disk.transactions
    bench.disk.fail_at = set(range(now, now + 100_000))


def heal(bench: Bench) -> None:
    bench.disk.fail_at = set()


def refused(bench: Bench, **target: str) -> None:
    with pytest.raises(StorageError):
        bench.fire(SHUTDOWN, **target)


def calls(bench: Bench) -> list[str]:
    return bench.managers["ollama"].calls
