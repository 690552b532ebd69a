"""What was begun is kept: for as long as it counts, whatever is done to the clock, and no longer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remediator.helper.ledger import Ledger
from tests.remediator.engine.fakes import FakeClock
from tests.remediator.helper.support import CARD, OTHER

DAY = 86_400.0


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def write(ledger: Ledger, verb: str = "set_power_limit", uuid: str = CARD) -> None:
    ledger.end(ledger.begin(verb, uuid), "done", "")


def test_writes_that_count_no_more_are_not_kept_for_a_day(tmp_path: Path) -> None:
    """As many as may be asked for in a day would be written anew with each write."""
    clock = FakeClock()
    ledger = Ledger(tmp_path, clock)
    for _ in range(3000):
        write(ledger)
        clock.advance(2)
    assert len(ledger._entries) < 100
    assert (tmp_path / "writes.jsonl").stat().st_size < 512 * 1024


def test_a_reset_counts_for_a_day_behind_however_many_writes(tmp_path: Path) -> None:
    clock = FakeClock()
    ledger = Ledger(tmp_path, clock)
    write(ledger, "reset")
    for _ in range(2000):
        write(ledger)
        clock.advance(20)
    assert Ledger(tmp_path, clock).resets_today(CARD) == 1
    clock.advance(DAY)
    assert Ledger(tmp_path, clock).resets_today(CARD) == 0


def test_the_newest_write_of_each_card_is_told_for_a_day(tmp_path: Path) -> None:
    clock = FakeClock()
    ledger = Ledger(tmp_path, clock)
    ledger.begin("set_power_limit", OTHER)
    for _ in range(10):
        clock.advance(600)
        write(ledger)
    untold = Ledger(tmp_path, clock).untold(OTHER)
    assert untold is not None
    assert untold.outcome == "unknown"


@pytest.mark.parametrize("restarts", [False, True])
def test_a_clock_that_was_set_back_keeps_nobody_from_an_undo(
    tmp_path: Path, restarts: bool
) -> None:
    clock = FakeClock()
    ledger = Ledger(tmp_path, clock)
    for _ in range(30):
        write(ledger)
    write(ledger, "reset")
    clock.passed -= 365 * DAY
    if restarts:
        ledger = Ledger(tmp_path, clock)
    # They count as happening now, and no longer than what happens now.
    assert ledger.writes_just_now(CARD) == 31
    clock.advance(61)
    ledger = Ledger(tmp_path, clock) if restarts else ledger
    assert ledger.writes_just_now(CARD) == 0
    assert ledger.resets_today(CARD) == 1
    clock.advance(DAY)
    ledger = Ledger(tmp_path, clock) if restarts else ledger
    assert ledger.resets_today(CARD) == 0
