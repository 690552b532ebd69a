"""A stop of which the emergency journal tells more than once, or the store as well: the last end counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.remediator.engine.bench import Bench
from tests.remediator.engine.emergency_scene import SHUTDOWN, calls, fail, heal, hot, refused

Make = Callable[..., Bench]


@pytest.fixture
def bench(make_bench: Make) -> Bench:
    return hot(make_bench(services=("ollama",)))


def journal(bench: Bench, at: float, state: str | None, *, began: bool = False) -> None:
    """A stop that the emergency journal says began at that time; with a `state` it ended at once."""
    about: dict[str, Any] = {"boot_id": "x", "target": ["gpu", bench.uuids[0]]}
    append = bench.store.emergency.append
    if began:
        playbook = {"alertname": SHUTDOWN, "playbook": "emergency-stop", "weight": 90, "plan": []}
        more = {"run": None, "episode": None, "sentence": "hot", "evidence": {}}
        append("began", time=at, **about, **playbook, **more)
    step = {**about, "seq": 0, "service": "ollama"}
    intent = {"before": {"pid": 7} if began else None, "was_to_return": False}
    append("intended", time=at, **step, intent=intent, sentence="stop")
    if state is not None:
        append("ended", time=at, **step, state=state, reason="r", sentence=state, because="hot")


def merged(bench: Bench) -> tuple[str, Any, float]:
    """Put it into the store; how the step is there then."""
    with bench.store.transaction() as tx:
        tx.set_meta("any", "thing")
    (step,) = bench.steps()
    return step.state, step.intent["before"], step.started_at


def test_a_stop_that_failed_and_then_worked_is_done(bench: Bench) -> None:
    manager = bench.managers["ollama"]
    stop, asked = manager.stop, []

    def not_at_first(identity: object, timeout: float) -> None:
        asked.append(1)
        if len(asked) > 2:
            stop(identity, timeout)

    manager.stop = not_at_first
    fail(bench)
    refused(bench)
    bench.pass_time(70, step=5)
    assert calls(bench) == ["stop 1001"]
    ends = [entry["state"] for entry in bench.store.emergency.of("ended")]
    assert ends == ["failed", "done"]
    heal(bench)
    bench.pass_time(30)
    assert [step.state for step in bench.steps()] == ["done"]
    assert bench.run.state == "succeeded"
    told = [
        (one["data"]["state"], one["data"]["emergency"]) for one in bench.events("step_finished")
    ]
    assert told == [("failed", True), ("done", True)], "the audit has both"


def test_the_order_of_the_journal_counts_and_not_a_clock_that_was_set_back(bench: Bench) -> None:
    now = bench.clock.now()
    journal(bench, now, "failed", began=True)
    journal(bench, now - 3600, "done")
    assert merged(bench) == ("done", {"pid": 7}, now)


def test_a_second_try_of_which_nobody_knows_the_end_has_none(bench: Bench) -> None:
    now = bench.clock.now()
    journal(bench, now, "failed", began=True)
    journal(bench, now + 60, None)
    assert merged(bench) == ("intended", {"pid": 7}, now)


@pytest.mark.parametrize(("later", "end"), [(-30.0, "failed"), (30.0, "done")])
def test_of_the_stores_end_and_the_journals_the_later_is_kept(
    bench: Bench, later: float, end: str
) -> None:
    now = bench.clock.now()
    journal(bench, now - 100, None, began=True)
    merged(bench)
    run = bench.run
    with bench.store.transaction() as tx:
        tx.runs.finish_step(run.id, 0, "failed", {}, "failed", now)
    # A file that was put back, or an entry that was in memory only.
    journal(bench, now + later, "done")
    assert merged(bench)[0] == end
    assert bench.audit_holds()


@pytest.mark.parametrize("commits", [0, 1, 2, 3])
def test_a_database_that_was_begun_anew_takes_over_what_the_one_before_it_could_not(
    bench: Bench, commits: int
) -> None:
    """It was damaged, and is moved away: the journal names an episode, or a run, that is not there."""
    bench.fire(SHUTDOWN)
    now = bench.disk.transactions
    bench.disk.fail_at = set(range(now + commits, now + 100_000))
    bench.pass_time(5)
    assert calls(bench) == ["stop 1001"]
    bench.store.close()
    for path in (*bench.directory.glob("remediator.db*"), bench.directory / "audit.anchor"):
        path.unlink(missing_ok=True)
    heal(bench)
    bench.restart()
    bench.fire(SHUTDOWN)
    bench.pass_time(30)
    assert calls(bench) == ["stop 1001"]
    assert bench.run.state == "succeeded"
    assert [step.state for step in bench.steps()] == ["done"]
    (told,) = bench.events("emergency")
    assert "follow" in told["sentence"]
    with bench.store.reading() as tx:
        assert tx.inventory.service("ollama").held_by == "gpu-remediator"
    assert bench.audit_holds()


def test_what_the_database_refuses_of_the_journal_keeps_nobody_from_writing(bench: Bench) -> None:
    journal(bench, bench.clock.now(), "done", began=True)
    entry = dict(bench.store.emergency.entries[1])
    bench.store.emergency.entries[1] = {**entry, "seq": None}
    bench.card.celsius = 60.0
    bench.fire(SHUTDOWN)
    (record,) = bench.events("emergency")
    assert "could not be taken over (IntegrityError)" in record["sentence"]
    assert bench.audit_holds()
