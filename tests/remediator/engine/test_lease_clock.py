"""A clock that somebody sets neither ends an undo lease early nor keeps one for hours."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from remediator.metrics import RemediatorCollector
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.test_leases import WARNING, heat_up_again

Make = Callable[..., Bench]
HOUR, DAY = 3600.0, 86_400.0


def overdue(bench: Bench) -> float:
    collector = RemediatorCollector(
        bench.world, bench.playbooks, bench.counters, bench.intake, bench.prober
    )
    return next(
        family.samples[0].value
        for family in collector.collect()
        if family.name == "remediator_undo_leases_overdue"
    )


def set_clock(bench: Bench, seconds: float, *, restarted: bool) -> None:
    bench.clock.set_by += seconds
    if restarted:
        bench.restart()


@pytest.fixture
def flapping(bench: Bench) -> Bench:
    """A card that was capped three times within minutes, and keeps its cap for that."""
    for _ in range(3):
        heat_up_again(bench)
    assert bench.written_watts[-1] == 320.0
    assert len(bench.open_leases) == 1
    return bench


@pytest.fixture
def blind(bench: Bench) -> Bench:
    """A card with a cap, of which nothing is seen any more."""
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.fire(WARNING)
    bench.act()
    bench.resolve(WARNING)
    bench.gpus.silent = True
    return bench


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("step", [-2 * HOUR, DAY])
def test_a_card_that_keeps_heating_up_keeps_its_cap_for_an_hour_whatever_the_clock_says(
    flapping: Bench, step: float, restarted: bool
) -> None:
    set_clock(flapping, step, restarted=restarted)
    flapping.pass_time(1500, step=10)
    assert len(flapping.open_leases) == 1, "the hour is not over"
    flapping.clock.advance(HOUR - 1500)
    flapping.pass_time(100)
    assert flapping.open_leases == [], "it is over"
    assert flapping.written_watts[-1] == 400.0


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("step", [-DAY, 2 * HOUR])
def test_a_lease_is_overdue_after_its_time_whatever_the_clock_says(
    blind: Bench, step: float, restarted: bool
) -> None:
    set_clock(blind, step, restarted=restarted)
    blind.pass_time(5)
    assert overdue(blind) == 0
    blind.clock.advance(HOUR - 60)
    assert overdue(blind) == 0
    blind.clock.advance(70)
    assert overdue(blind) == 1


@pytest.mark.parametrize("step", [-DAY, 2 * HOUR])
def test_a_card_that_is_gone_is_told_of_in_time_whatever_the_clock_says(
    blind: Bench, step: float
) -> None:
    blind.gpus.silent, blind.gpus.cards = False, {}
    blind.clock.set_by += step
    blind.pass_time(60)
    assert blind.events("undo_card_gone") == []
    blind.clock.advance(HOUR)
    blind.pass_time(5)
    assert len(blind.events("undo_card_gone")) == 1


def test_after_a_reboot_the_wall_clock_is_all_there_is(
    blind: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remediator.run_ages.boot_id", lambda: "another boot")
    blind.clock.set_by += 2 * HOUR  # the machine was off for so long
    blind.restart()
    assert overdue(blind) == 1
    blind.clock.set_by -= 2 * HOUR
    assert overdue(blind) == 1, "and from then on nobody believes a clock that is set"


def test_what_an_older_version_opened_has_no_monotonic_time_and_goes_by_the_wall_clock(
    blind: Bench,
) -> None:
    with blind.store.transaction() as tx:
        tx._db.execute("UPDATE leases SET boot_id = '', created_monotonic = NULL")
    blind.clock.set_by += 2 * HOUR
    blind.restart()
    assert overdue(blind) == 1
