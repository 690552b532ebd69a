"""After a crash or a long pause: what was seen before is old news, and is looked at again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from remediator.engine.gathering import PAUSED
from tests.remediator.engine.bench import Bench

DOWN = "LLMServiceDown"
CRITICAL = "GPUTemperatureCritical"
Make = Callable[..., Bench]


class Crash(BaseException):
    """The process dies here; nothing of ours may catch it."""


def crash(*_: object) -> None:
    raise Crash


@pytest.fixture
def bench(make_bench: Make) -> Bench:
    return make_bench(services=("ollama",))


def die_during(bench: Bench, seconds: float) -> None:
    """Execute what is reserved, and die so many seconds into it."""
    bench.clock.at(bench.clock.passed + seconds, crash)
    with pytest.raises(Crash):
        bench.execute()


def test_a_reserved_run_that_a_crash_delayed_looks_again(bench: Bench) -> None:
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.fire("GPUTemperatureWarning")
    bench.evaluate()
    bench.clock.advance(3600)
    bench.card.celsius = 60.0
    bench.restart()
    bench.execute()
    assert (bench.run.state, bench.run.reason) == ("refused", "below_threshold")
    assert bench.control.writes == []


@pytest.mark.parametrize("clock", [0.0, -7200.0])
def test_a_run_that_was_reserved_before_a_reboot_looks_again_whatever_the_clock_says(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, clock: float
) -> None:
    """A machine without a battery for its clock starts where it was, or long before."""
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.fire("GPUTemperatureWarning")
    bench.evaluate()
    bench.clock.passed += clock
    bench.card.celsius = 60.0
    bench.restart()
    monkeypatch.setattr("remediator.engine.run_execution.boot_id", lambda: "another", raising=False)
    bench.execute()
    assert (bench.run.state, bench.run.reason) == ("refused", "below_threshold")
    assert bench.control.writes == []


def test_a_clock_that_was_set_back_makes_no_evidence_fresh(bench: Bench) -> None:
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.fire("GPUTemperatureWarning")
    bench.evaluate()
    bench.clock.passed -= 7200
    bench.card.celsius = 60.0
    bench.restart()
    bench.execute()
    assert (bench.run.state, bench.run.reason) == ("refused", "below_threshold")


def test_a_reserved_run_that_a_crash_delayed_goes_on_when_it_is_still_so(bench: Bench) -> None:
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.fire("GPUTemperatureWarning")
    bench.evaluate()
    bench.clock.advance(3600)
    bench.restart()
    bench.execute()
    assert bench.run.state == "succeeded"


def test_a_service_that_came_back_during_the_crash_is_not_restarted(bench: Bench) -> None:
    manager = bench.managers["ollama"]
    manager.die()
    bench.fire(DOWN, service="ollama")
    bench.evaluate()
    # settled and checked; dies while it asks what is to be restarted
    status, asked = manager.status, []

    def die_the_third_time() -> object:
        asked.append(1)
        return status() if len(asked) < 2 else crash()

    manager.status = die_the_third_time
    with pytest.raises(Crash):
        bench.execute()
    assert [step.action for step in bench.steps()] == ["settle", "check", "lower_load"]
    manager.status = status
    manager.start(1)
    bench.clock.advance(3600)
    bench.restart()
    bench.execute()
    assert (bench.run.state, bench.run.reason) == ("refused", "healthy")
    assert manager.calls == ["start 1002"], "by a person, meanwhile"


def test_nothing_more_is_begun_while_it_cannot_be_seen_again(bench: Bench) -> None:
    bench.card.celsius = 84.0
    bench.fire("GPUTemperatureWarning")
    bench.evaluate()
    bench.clock.advance(3600)
    bench.gpus.silent = True
    bench.restart()
    bench.execute()
    assert (bench.run.state, bench.run.reason) == ("ineffective", "no_evidence")
    assert bench.control.writes == []


def between_rungs(bench: Bench) -> None:
    """A cap that did not help within its time, and a crash before the service is restarted."""
    bench.card.celsius = 88.0
    bench.fire(CRITICAL)
    bench.evaluate()
    bench.managers["ollama"].status = crash
    with pytest.raises(Crash):
        bench.execute()
    del bench.managers["ollama"].status
    assert bench.run.rung == 1


def test_a_cap_that_helped_during_the_crash_is_enough(bench: Bench) -> None:
    between_rungs(bench)
    bench.card.celsius = 70.0
    bench.clock.advance(600)
    bench.restart()
    bench.execute()
    assert bench.run.state == "succeeded"
    assert bench.managers["ollama"].calls == []
    assert bench.written_watts == [100.0]


def test_a_heavier_rung_after_a_crash_passes_its_gates_anew(bench: Bench) -> None:
    between_rungs(bench)
    with bench.store.transaction() as tx:
        tx.set_meta(PAUSED, "a person works here")
    bench.restart()
    bench.execute()
    assert (bench.run.state, bench.run.reason) == ("cancelled", "paused")
    assert bench.managers["ollama"].calls == []


def test_a_run_that_was_being_verified_is_verified_on(bench: Bench) -> None:
    bench.card.celsius = 84.0
    bench.fire("GPUTemperatureWarning")
    bench.evaluate()
    die_during(bench, 10)
    assert bench.run.state == "verifying"
    bench.card.celsius = 70.0
    bench.restart()
    bench.execute()
    assert bench.run.state == "succeeded"
    assert bench.written_watts == [320.0]


def test_a_playbook_that_was_taken_away_meanwhile_ends_its_run(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    between_rungs(bench)
    one_rung = bench.config.playbooks | {
        "cool-down": {
            "rungs": [
                {
                    "steps": [{"action": "cap_power", "to": "minimum"}],
                    "verify": {"signal": "temperature", "level": "critical"},
                }
            ]
        }
    }
    bench.config = type(bench.config)(**{**vars(bench.config), "playbooks": one_rung})
    bench.restart()
    bench.execute()
    assert (bench.run.state, bench.run.reason) == ("failed", "playbook_changed")
    assert bench.managers["ollama"].calls == []


def test_a_service_that_was_taken_away_meanwhile_ends_its_run(bench: Bench) -> None:
    between_rungs(bench)
    bench.managers.pop("ollama")
    bench.restart()
    bench.execute()
    assert (bench.run.state, bench.run.reason) == ("failed", "no_service")
