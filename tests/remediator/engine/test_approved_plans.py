"""What was approved is what is done: another plan, playbook or evidence is asked about anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from remediator.engine import approval
from remediator.services import ServiceProbe
from remediator.store import Run
from tests.remediator.engine.bench import Bench

Make = Callable[..., Bench]
DOWN = "LLMServiceDown"


def waiting(bench: Bench) -> tuple[Run, str]:
    (run,) = (run for run in bench.runs if run.state == "awaiting_approval")
    with bench.store.reading() as tx:
        asked = tx.approvals.get(run.id)
    assert asked is not None
    return run, asked.token


@pytest.fixture
def asked(make_bench: Make) -> Bench:
    bench = make_bench(services=("ollama",), mode="approve")
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.pass_time(8)
    return bench


def test_what_was_approved_is_done(asked: Bench) -> None:
    run, token = waiting(asked)
    assert approval.approve(asked.world, asked.playbooks, run.id, token, "alice") is None
    asked.execute()
    assert asked.managers["ollama"].calls == ["start 1002"]


def test_a_plan_that_has_changed_is_refused_says_what_and_is_asked_anew(asked: Bench) -> None:
    run, token = waiting(asked)
    service = asked.world.services["ollama"]
    asked.world.services["ollama"] = replace(  # type: ignore[index]
        service, config=replace(service.config, endpoint="http://127.0.0.1:2")
    )
    refused = approval.approve(asked.world, asked.playbooks, run.id, token, "alice")
    assert refused is not None
    assert "http://127.0.0.1:1" in refused.sentence
    assert "http://127.0.0.1:2" in refused.sentence
    assert asked.runs[0].reason == "plan_changed"
    asked.pass_time(2)
    second, other = waiting(asked)
    assert (second.id, other == token) == (run.id + 1, False)
    assert approval.approve(asked.world, asked.playbooks, second.id, token, "alice") is not None
    assert approval.approve(asked.world, asked.playbooks, second.id, other, "alice") is None


@pytest.mark.parametrize("later", [0, 10])
def test_other_evidence_than_was_approved_does_nothing_and_is_asked_anew(
    make_bench: Make, later: float
) -> None:
    bench = make_bench(services=("ollama",), mode="approve")
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    while not bench.runs:
        bench.pass_time(1)
    run, token = waiting(bench)
    with bench.store.transaction() as tx:
        tx._db.execute("UPDATE approvals SET evidence = ?", ('{"reason":"x","services":[]}',))
    with bench.store.reading() as tx:
        token = tx.approvals.get(run.id).token
    assert approval.approve(bench.world, bench.playbooks, run.id, token, "alice") is None
    bench.drivers["ollama"].forced = ServiceProbe("refused", "refused")
    bench.clock.advance(later)
    bench.execute()
    assert (bench.runs[0].state, bench.runs[0].reason) == ("refused", "plan_changed")
    assert bench.managers["ollama"].calls == []
    bench.pass_time(40)
    assert [one.state for one in bench.runs] == ["refused", "awaiting_approval"]


def test_a_changed_playbook_is_not_what_was_approved(asked: Bench) -> None:
    run, token = waiting(asked)
    assert approval.approve(asked.world, asked.playbooks, run.id, token, "alice") is None
    rungs = [
        {"steps": [{"action": "start_service"}], "verify": {"signal": "out_of_memory"}},
        {"steps": [{"action": "restart_service"}], "verify": {"signal": "out_of_memory"}},
    ]
    asked.config = replace(asked.config, playbooks={"recover-oom": {"rungs": rungs}})
    asked.restart()
    asked.clock.advance(10)
    asked.execute()
    assert asked.runs[0].state in ("refused", "failed")
    assert asked.managers["ollama"].calls == []
