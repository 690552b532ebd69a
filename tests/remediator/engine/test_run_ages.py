"""How long ago a run began and ended, whatever somebody does to the wall clock, also over a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from remediator.clock import boot_id
from remediator.store import Run
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.device_scene import RECOVERY, DeviceBench
from tests.remediator.engine.reserved import reserve

Make = Callable[..., Bench]
HOUR, DAY = 3600.0, 86_400.0
DOWN = "LLMServiceDown"


def long_run(bench: Bench) -> Run:
    """One that interrupted its service, took half an hour, and ended just now."""
    target = Target("service", "ollama")
    with bench.store.transaction() as tx:
        now = bench.clock.now()
        run = reserve(tx, target, now, playbook="recover-oom", weight=50, locks=(target,))
        tx._db.execute(
            "UPDATE runs SET created_monotonic = ?, boot_id = ? WHERE id = ?",
            (bench.clock.monotonic(), boot_id(), run.id),
        )
        tx.runs.mark_destructive(run.id)
    bench.world.ages.dated(run, bench.clock)
    bench.clock.advance(1800)
    with bench.store.transaction() as tx:
        tx.runs.end(run.id, "succeeded", "x", "", bench.clock.now())
    return bench.run_of(run.id)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("step", [-DAY, -HOUR, HOUR, DAY, 400 * DAY])
def test_a_cooldown_after_a_long_run_ends_when_it_ends_whatever_the_clock_says(
    make_bench: Make, step: float, *, restarted: bool
) -> None:
    bench = make_bench(services=("ollama",), limits={"cooldown": "10m"})
    long_run(bench)
    bench.clock.advance(60)
    bench.clock.set_by += step
    if restarted:
        bench.restart()
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.pass_time(500, step=10)
    assert bench.managers["ollama"].calls == []
    assert set(bench.decisions) <= {"defer:settling", "defer:cooldown"}
    bench.pass_time(120, step=10)
    assert bench.managers["ollama"].calls == ["start 1002"]


@pytest.mark.parametrize("step", [-DAY, HOUR])
def test_the_end_of_a_run_of_an_earlier_boot_goes_by_the_wall_clock(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    run = long_run(bench)
    monkeypatch.setattr("remediator.run_ages.boot_id", lambda: "another boot")
    bench.restart()
    bench.clock.set_by += step
    created_at, ended_at = bench.world.ages.dated(run, bench.clock)
    now = bench.clock.now()
    assert ended_at == (now if step < 0 else now - step)
    assert created_at == (now if step < 0 else now - step - 1800)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("step", [-DAY, -400 * DAY, DAY, 400 * DAY])
def test_a_card_is_reset_once_a_day_whatever_the_clock_says(
    tmp_path: Path, step: float, *, restarted: bool
) -> None:
    bench = DeviceBench(tmp_path)
    bench.asks_for("reset")
    bench.pass_time(30)
    assert bench.run.state == "succeeded"
    bench.resolve(RECOVERY)
    for passed, resets in ((2 * HOUR, 1), (22 * HOUR, 2)):
        bench.clock.set_by += step if resets == 1 else 0.0
        if restarted:
            bench.restart()
        bench.clock.advance(passed)
        # The clock of whoever sends it is not set back.
        bench.card.recovery_action = "reset"
        bench.fire(RECOVERY, ago=min(step, 0.0) + 5.0)
        bench.pass_time(30)
        assert len(bench.reset.resets) == resets
        bench.resolve(RECOVERY)
    bench.close()
