"""A reset beside the other services of a card, other runs and people."""

from __future__ import annotations

from typing import Any

from remediator.store.inventory import OPERATOR
from tests.remediator.engine.device_scene import (
    DeviceBench,
    end,
)

# several services, and what others want of them


def test_only_what_ran_is_started_again(make: Any) -> None:
    bench = make(services=("crashed", "held", "running"))
    bench.managers["crashed"].die()
    bench.managers["held"].stop(None, 1)
    with bench.store.transaction() as tx:
        tx.inventory.hold("held", OPERATOR, "maintenance", bench.clock.now())
    for manager in bench.managers.values():
        manager.calls.clear()
    bench.asks_for("reset")
    bench.act()
    assert end(bench) == ("succeeded", "verified")
    assert bench.calls("running") == ["stop", "start"]
    assert bench.calls("crashed") == bench.calls("held") == []
    assert bench.held("held") == "maintenance"
    assert bench.held("crashed") is None, "its own playbook may start it"


def test_what_an_earlier_stop_for_heat_holds_stays_held(bench: DeviceBench) -> None:
    bench.card.celsius = 95.0
    bench.fire("GPUTemperatureShutdown")
    bench.evaluate()
    bench.clock.at(bench.clock.passed + 1, lambda: setattr(bench.card, "celsius", 60.0))
    bench.execute()
    before = bench.held()
    bench.asks_for("reset")
    bench.pass_time(60)
    assert [run.state for run in bench.runs] == ["succeeded", "succeeded"]
    assert bench.held() == before
    assert bench.calls() == ["stop"]
    assert len(bench.reset.resets) == 1


# other runs, and people


def test_a_stop_for_heat_takes_over_between_stop_and_reset(bench: DeviceBench) -> None:
    bench.asks_for("drain_and_reset")
    stop = bench.managers["ollama"].stop

    def stops(*arguments: Any) -> None:
        stop(*arguments)
        bench.managers["ollama"].stop = stop
        bench.card.celsius = 95.0
        bench.fire("GPUTemperatureShutdown")
        bench.evaluate()
        bench.card.celsius = 60.0

    bench.managers["ollama"].stop = stops
    bench.act()
    bench.execute()
    repair, stopped = bench.runs
    assert (repair.playbook, repair.state) == ("device-fault", "cancelled")
    assert stopped.playbook == "emergency-stop"
    assert bench.reset.resets == []
    assert bench.calls() == ["stop"], "what the stop for heat wants down stays down"


def test_a_lighter_run_on_the_card_makes_way(bench: DeviceBench) -> None:
    bench.card.celsius = 84.0
    bench.fire("GPUTemperatureWarning")
    bench.evaluate()
    bench.asks_for("reset")
    bench.pass_time(5)
    assert [(run.playbook, run.state) for run in bench.runs] == [
        ("throttle-gpu", "cancelled"),
        ("device-fault", "succeeded"),
    ]


def test_with_mode_approve_nothing_is_stopped_before_a_person_says_so(make: Any) -> None:
    bench = make(mode="approve")
    bench.asks_for("reset")
    bench.act()
    assert bench.run.state == "awaiting_approval"
    assert bench.calls() == []
    run = bench.run
    with bench.store.transaction() as tx:
        tx.runs.set_state(run.id, "reserved", bench.clock.now())
    bench.execute()
    assert end(bench) == ("succeeded", "verified")
    assert len(bench.reset.resets) == 1


def test_with_mode_observe_it_says_what_it_would_do(make: Any) -> None:
    bench = make(mode="observe")
    bench.asks_for("reset")
    bench.act()
    assert bench.decisions == ["observe:mode_observe"]
    assert "reset_gpu on" in bench.events("decision")[0]["sentence"]
    assert bench.calls() == []


def shut_down(bench: DeviceBench) -> None:
    bench.world.stopping.set()
    bench.executor.wake_all()


def test_a_shutdown_while_the_card_empties_is_known_to_have_reset_nothing(
    bench: DeviceBench,
) -> None:
    bench.asks_for("drain_and_reset")
    bench.evaluate()
    stop = bench.managers["ollama"].stop

    def stops(*arguments: Any) -> None:
        stop(*arguments)
        bench.card.strangers = {4242: "train.py"}
        bench.clock.at(bench.clock.passed + 5, lambda: shut_down(bench))

    bench.managers["ollama"].stop = stops
    bench.execute()
    assert bench.run.ended_at is None
    assert bench.calls() == ["stop"]
    bench.restart()
    bench.execute()
    assert end(bench) == ("failed", "in_use")
    assert "is being stopped" in bench.run.sentence
    assert bench.calls() == ["stop", "start"]
    assert bench.held() is None


def test_a_shutdown_before_the_card_answers_again_does_not_repeat_the_reset(
    bench: DeviceBench,
) -> None:
    bench.asks_for("drain_and_reset")
    bench.evaluate()

    def resets(uuid: str) -> bool:
        bench.card.fault = "timeout"
        bench.clock.at(bench.clock.passed + 5, lambda: shut_down(bench))
        return True

    bench.reset.does = resets
    bench.execute()
    assert bench.run.ended_at is None
    bench.restart()
    bench.card.fault, bench.card.recovery_action = None, "none"
    bench.execute()
    assert end(bench) == ("failed", "not_reset")
    assert "was stopped before it had looked" in bench.run.sentence
    assert len(bench.reset.resets) == 1
    assert bench.calls() == ["stop", "start"]
