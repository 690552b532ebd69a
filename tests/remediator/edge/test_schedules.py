"""The bounded form of `python -m tests.remediator.schedules`; and that it sees what it looks for."""

from __future__ import annotations

import pytest

from remediator import intake
from remediator.store.episodes import Episodes
from tests.remediator import schedules


def test_each_true_firing_is_acted_on_once_however_it_is_told() -> None:
    played = list(schedules.run(1, 40))
    assert [(seed, one.problem) for seed, one in played if one.problem] == []
    assert sum(one.actions for _, one in played) > 40


def test_a_seed_draws_the_same_schedule_again() -> None:
    assert schedules.draw(7) == schedules.draw(7) != schedules.draw(8)


def test_it_would_see_an_end_that_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Episodes, "last_for", lambda *_: None)
    monkeypatch.setattr(Episodes, "open", _numbered(Episodes.open))
    assert any(one.problem for _, one in schedules.run(1, 12))


def test_it_would_see_a_firing_that_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "DRIFT_SECONDS", 1e9)
    monkeypatch.setattr(Episodes, "end", lambda *_, **__: None)
    assert any("missed" in one.problem for _, one in schedules.run(1, 12))


def _numbered(real: object) -> object:
    """Episodes whose numbers grow though nothing is known of the earlier ones."""
    numbers = iter(range(1, 10**6))
    return lambda self, alert, _, now: real(self, alert, next(numbers), now)  # type: ignore[operator]
