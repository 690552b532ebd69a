"""An approval passes the gates of a start anew: time has passed, and others may have acted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from remediator.engine import approval
from remediator.store import Run
from remediator.targets import Target
from tests.remediator.engine.bench import Bench

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
    return approval.approve(bench.world, run.id, asked.token, "alice")


def worked_just_now(bench: Bench, playbook: str, ago: float) -> None:
    """Another run interrupted the service, and ended `ago` seconds ago."""
    now = bench.clock.now()
    with bench.store.transaction() as tx:
        other = tx.runs.create(
            episode_id=None,
            playbook=playbook,
            weight=10,
            trigger="x",
            target=Target("service", "ollama"),
            locks=(),
            state="running",
            plan=[],
            now=now - ago - 1,
            expires_at=None,
            boot_id="",
        )
        assert other is not None
        tx.runs.mark_destructive(other.id)
        tx.runs.end(other.id, "succeeded", "verified", "", now - ago)


@pytest.mark.parametrize("reason", ["settling", "cooldown"])
def test_an_approved_run_waits_for_what_was_done_just_now(bench: Bench, reason: str) -> None:
    ask(bench)
    (run,) = bench.runs
    ago = 1.0 if reason == "settling" else bench.config.timing.settling + 1
    worked_just_now(bench, "recover-oom" if reason == "settling" else run.playbook, ago)
    assert approve(bench, run) is None
    bench.execute()
    assert bench.managers["ollama"].calls == []
    ended = next(one for one in bench.runs if one.id == run.id)
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
    worked_just_now(bench, "recover-oom", 1.0)
    assert approve(bench, bench.runs[0]) is None
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
