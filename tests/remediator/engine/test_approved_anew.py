"""An approval passes the gates of a start anew: time has passed, and others may have acted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from remediator.engine import approval
from remediator.engine.gathering import BREAKER, PAUSED
from remediator.store import Run
from remediator.store.rows import RunState
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.reserved import reserve

Make = Callable[..., Bench]
DOWN = "LLMServiceDown"


@pytest.fixture
def bench(make_bench: Make) -> Bench:
    bench = make_bench(services=("ollama",), mode="approve")
    bench.managers["ollama"].die()
    return bench


def ask(bench: Bench, **labels: str) -> None:
    bench.fire(DOWN, service="ollama", **labels)
    bench.pass_time(8)


def approve(bench: Bench, run: Run) -> approval.Refused | None:
    with bench.store.reading() as tx:
        asked = tx.approvals.get(run.id)
    assert asked is not None
    return approval.approve(bench.world, bench.playbooks, run.id, asked.token, "alice")


def worked_just_now(
    bench: Bench, playbook: str, ago: float, outcome: RunState = "succeeded"
) -> None:
    """Another run interrupted the service, and ended `ago` seconds ago."""
    # Its end is noted by the monotonic clock, too.
    bench.clock.passed -= ago
    now = bench.clock.now()
    with bench.store.transaction() as tx:
        other = reserve(tx, Target("service", "ollama"), now - 1, playbook=playbook)
        tx.runs.mark_destructive(other.id)
        tx.runs.end(other.id, outcome, "x", "", now)
    bench.clock.passed += ago


def just_now(bench: Bench, run: Run, reason: str) -> float:
    """Something that `reason` keeps `run` back for, and until when (Unix seconds)."""
    timing, limits, now = bench.config.timing, bench.config.limits, bench.clock.now()
    if reason == "settling":
        worked_just_now(bench, "recover-hang", 1.0)
        return now - 1.0 + timing.settling
    worked_just_now(bench, run.playbook, timing.settling + 1)
    return now - timing.settling - 1 + limits.cooldown


@pytest.mark.parametrize("reason", ["settling", "cooldown"])
def test_who_approves_too_early_is_told_at_once_until_when_and_the_run_waits_on(
    bench: Bench, reason: str
) -> None:
    ask(bench)
    (run,) = bench.runs
    until = just_now(bench, run, reason)
    refused = approve(bench, run)
    assert refused is not None
    assert (refused.reason, refused.until) == (reason, pytest.approx(until))
    assert "approve it again after 2025-" in refused.sentence
    assert bench.run_of(run.id).state == "awaiting_approval"
    (record,) = bench.events("approval_kept_back")
    assert (record["reason"], record["data"]["by"]) == (reason, "alice")
    bench.clock.advance(until - bench.clock.now() + 0.2)
    assert approve(bench, run) is None
    bench.execute()
    assert bench.managers["ollama"].calls == ["start 1002"]


def test_of_what_follows_on_each_other_the_last_end_is_told(bench: Bench) -> None:
    ask(bench)
    (run,) = bench.runs
    worked_just_now(bench, run.playbook, 1.0)
    refused = approve(bench, run)
    assert refused is not None
    ends = bench.clock.now() - 1.0 + bench.config.limits.cooldown
    assert (refused.reason, refused.until) == ("settling", pytest.approx(ends, abs=1))


def test_who_approves_is_told_that_the_question_expires_before_that(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",), mode="approve", limits={"cooldown": "1h"})
    bench.managers["ollama"].die()
    ask(bench)
    (run,) = bench.runs
    worked_just_now(bench, run.playbook, 60.0)
    refused = approve(bench, run)
    assert refused is not None
    assert "its question expires at" in refused.sentence


@pytest.mark.parametrize("reason", ["paused", "kill_switch", "breaker_open", "rate_limit"])
def test_who_approves_is_told_of_every_other_gate_that_says_no(
    make_bench: Make, reason: str
) -> None:
    bench = make_bench(services=("ollama",), mode="approve", limits={"destructive_per_hour": 1})
    bench.managers["ollama"].die()
    ask(bench)
    (run,) = bench.runs
    with bench.store.transaction() as tx:
        if reason == "paused":
            tx.set_meta(PAUSED, "a person")
        elif reason == "breaker_open":
            tx.set_meta(BREAKER, "3 runs failed")
    if reason == "kill_switch":
        bench.config.kill_switch.touch()
    elif reason == "rate_limit":
        worked_just_now(bench, "recover-oom", 600.0)
    refused = approve(bench, run)
    assert refused is not None
    assert (refused.reason, refused.until) == (reason, None)
    bench.execute()
    assert bench.managers["ollama"].calls == []
    assert bench.run_of(run.id).state == "awaiting_approval"


def test_an_approval_that_would_open_the_breaker_opens_it(make_bench: Make) -> None:
    limits = {"breaker_failures": 1, "cooldown": "0s"}
    bench = make_bench(services=("ollama",), mode="approve", limits=limits)
    bench.managers["ollama"].die()
    ask(bench)
    (run,) = bench.runs
    worked_just_now(bench, "recover-oom", 600.0, "failed")
    refused = approve(bench, run)
    assert refused is not None
    assert refused.reason == "breaker_open"
    assert len(bench.events("breaker_opened")) == 1


@pytest.mark.parametrize("reason", ["settling", "cooldown"])
def test_an_approved_run_waits_for_what_was_done_between_the_yes_and_the_step(
    bench: Bench, reason: str
) -> None:
    ask(bench)
    (run,) = bench.runs
    assert approve(bench, run) is None
    just_now(bench, run, reason)
    bench.execute()
    assert bench.managers["ollama"].calls == []
    ended = bench.run_of(run.id)
    assert (ended.state, ended.reason) == ("cancelled", reason)


def test_an_approved_run_does_not_do_again_what_was_done_about_the_same_fault(
    bench: Bench,
) -> None:
    ask(bench)
    (run,) = bench.runs
    bench.fire(DOWN, service="ollama", job="another")
    with bench.store.transaction() as tx:
        (other,) = (one for one in tx.episodes.open_all() if one.id != run.episode_id)
        tx.episodes.decided(other.id, "ended:failed:error", None, acted=True)
    assert approve(bench, run) is None
    bench.execute()
    assert (bench.runs[0].state, bench.runs[0].reason) == ("refused", "duplicate")
    assert bench.managers["ollama"].calls == []


def test_two_questions_for_one_fault_are_answered_by_one_approval(bench: Bench) -> None:
    ask(bench)
    ask(bench, job="another")
    first, second = bench.runs
    assert approve(bench, first) is None
    ended = bench.runs[1]
    assert (ended.state, ended.reason) == ("refused", "duplicate")
    refused = approve(bench, second)
    assert refused is not None
    assert f"run {first.id}" in ended.sentence
    bench.execute()
    bench.pass_time(60)
    assert bench.managers["ollama"].calls == ["start 1002"]
    assert not [one for one in bench.runs if one.state == "awaiting_approval"]


def test_the_other_fault_is_asked_about_anew_where_the_approved_run_did_nothing(
    bench: Bench,
) -> None:
    ask(bench)
    ask(bench, job="another")
    assert approve(bench, bench.runs[0]) is None
    worked_just_now(bench, "recover-oom", 1.0)
    bench.execute()
    bench.pass_time(400)
    assert [one for one in bench.runs if one.state == "awaiting_approval"]


def test_a_run_under_way_is_not_kept_back_by_what_only_a_start_is_asked(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",), mode="approve")
    bench.managers["ollama"].die()
    ask(bench)
    (run,) = bench.runs
    assert approve(bench, run) is None
    bench.execute()
    assert bench.managers["ollama"].calls == ["start 1002"]


def other_run(bench: Bench, *, weight: int, playbook: str = "other") -> Run:
    """A run that works on the service that the question is about."""
    target = Target("service", "ollama")
    with bench.store.transaction() as tx:
        now = bench.clock.now()
        return reserve(tx, target, now, playbook=playbook, weight=weight, locks=(target,))


def test_a_lighter_run_is_asked_to_make_way_and_has_to_be_gone_first(bench: Bench) -> None:
    ask(bench)
    (run,) = bench.runs
    other = other_run(bench, weight=run.weight - 1)
    refused = approve(bench, run)
    assert refused is not None
    assert f"run {other.id} (other) is asked to make way" in refused.sentence
    assert bench.run_of(other.id).cancel_reason == "superseded"
    assert bench.run_of(run.id).state == "awaiting_approval"
    # Who made the other one go stands in the audit.
    (record,) = bench.events("approval_kept_back")
    assert (record["run"], record["reason"]) == (run.id, "target_busy")
    assert record["data"] == {"by": "alice"}
    with bench.store.transaction() as tx:
        tx.runs.end(other.id, "cancelled", "superseded", "", bench.clock.now())
    assert approve(bench, run) is None
    with bench.store.reading() as tx:
        assert [one.id for one in tx.runs.holders((run.target,))] == [run.id]


@pytest.mark.parametrize("more", [0, 1])
def test_a_run_that_is_as_heavy_is_left_alone(bench: Bench, more: int) -> None:
    ask(bench)
    (run,) = bench.runs
    other = other_run(bench, weight=run.weight + more)
    refused = approve(bench, run)
    assert refused is not None
    assert f"run {other.id} (other) works on it" in refused.sentence
    assert bench.run_of(other.id).cancel_reason is None
    assert bench.run_of(run.id).state == "awaiting_approval"


def test_an_approved_stop_for_heat_takes_its_card_at_once(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",), mode="approve")
    bench.card.celsius = 92.0
    bench.fire("GPUTemperatureShutdown")
    bench.act()
    (run,) = bench.runs
    with bench.store.transaction() as tx:
        cap = reserve(
            tx,
            run.target,
            bench.clock.now(),
            playbook="throttle-gpu",
            weight=run.weight - 1,
            locks=(run.target,),
        )
    assert approve(bench, run) is None
    with bench.store.reading() as tx:
        assert [one.id for one in tx.runs.holders((run.target,))] == [run.id]
    assert bench.run_of(cap.id).cancel_reason == "superseded"
