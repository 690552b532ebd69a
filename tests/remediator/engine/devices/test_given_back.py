"""A service that was stopped for one run: who starts it again, and who hears when nobody does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from remediator.engine.gathering import PAUSED
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.device_scene import HOT, RECOVERY, DeviceBench, heat, later

AGAIN = [
    {"action": "wait_cool", "lasting": "30s", "within": "10m"},
    {"action": "start_service"},
    {"action": "wait_ready"},
]
STARTS_AGAIN = {"emergency-stop": {"afterwards": AGAIN}}
Make = Callable[..., DeviceBench]


def ends(bench: Bench) -> list[tuple[str, str]]:
    return [(run.playbook, run.state) for run in bench.runs]


# A service that is held for one run is given back by the one that takes over.


def test_a_stop_for_heat_that_is_repeated_while_it_waits_starts_the_service_in_the_end(
    make: Make,
) -> None:
    bench = make(playbooks=STARTS_AGAIN)
    heat(bench, 95.0)
    bench.fire(HOT)
    bench.evaluate()

    def hot_again() -> None:
        heat(bench, 95.0)
        bench.resolve(HOT)
        bench.clock.advance(2)
        bench.fire(HOT, ago=1)
        bench.evaluate()
        later(bench, 5, lambda: heat(bench, 60.0))
        bench.executor.wake(bench.runs[0].id)
        bench.executor.execute(bench.runs[1].id)

    later(bench, 5, lambda: heat(bench, 60.0))
    later(bench, 20, hot_again)
    bench.execute()
    assert ends(bench) == [("emergency-stop", "cancelled"), ("emergency-stop", "succeeded")]
    assert bench.calls() == ["stop", "start"]
    assert bench.held() is None


def test_two_hot_cards_give_the_service_of_both_back_once_both_are_cool(make: Make) -> None:
    bench = make(gpus=2, playbooks=STARTS_AGAIN)
    heat(bench, 95.0)
    bench.fire(HOT)
    bench.evaluate()

    def the_other_too() -> None:
        heat(bench, 95.0, 1)
        bench.fire(HOT, uuid=bench.uuids[1])
        bench.evaluate()
        later(bench, 5, lambda: heat(bench, 60.0, 1))
        bench.executor.wake(bench.runs[0].id)
        bench.executor.execute(bench.runs[1].id)

    later(bench, 5, lambda: heat(bench, 60.0))
    later(bench, 20, the_other_too)
    bench.execute()
    assert ends(bench) == [("emergency-stop", "cancelled"), ("emergency-stop", "succeeded")]
    assert bench.calls() == ["stop", "start"]
    assert bench.held() is None


def hot_during_the_stop(bench: DeviceBench) -> None:
    """While its service stops for a reset, a card gets hot and a stop for heat is decided."""
    stop = bench.managers["ollama"].stop

    def stops(*arguments: Any) -> None:
        stop(*arguments)
        bench.managers["ollama"].stop = stop  # type: ignore[method-assign]
        heat(bench, 95.0)
        bench.fire(HOT)
        bench.evaluate()
        heat(bench, 60.0)

    bench.managers["ollama"].stop = stops  # type: ignore[method-assign]


def test_a_stop_for_heat_that_takes_over_from_a_reset_gives_back_what_that_had_stopped(
    make: Make,
) -> None:
    bench = make(playbooks=STARTS_AGAIN)
    bench.asks_for("drain_and_reset")
    hot_during_the_stop(bench)
    bench.act()
    bench.execute()
    assert ends(bench) == [("device-fault", "cancelled"), ("emergency-stop", "succeeded")]
    assert bench.reset.resets == []
    assert bench.calls() == ["stop", "start"]
    assert bench.held() is None


def test_without_a_start_the_hold_of_a_stop_for_heat_says_that_it_is_for_heat(make: Make) -> None:
    bench = make()
    bench.asks_for("drain_and_reset")
    hot_during_the_stop(bench)
    bench.act()
    bench.execute()
    assert bench.calls() == ["stop"]
    assert bench.held() == "the GPU passed its shutdown temperature"


def test_two_cards_that_are_reset_one_after_the_other_give_their_service_back(make: Make) -> None:
    bench = make(gpus=2)
    bench.faulty[bench.uuids[1]].recovery_action = "reset"
    bench.asks_for("reset")
    bench.act()
    assert bench.runs[0].state == "failed", "the other card cannot run the service yet"
    bench.fire(RECOVERY, uuid=bench.uuids[1])
    bench.clock.advance(400)
    bench.act()
    assert bench.runs[-1].state == "succeeded"
    assert bench.reset.resets == bench.uuids
    assert bench.calls() == ["stop", "start"]
    assert bench.held() is None


def test_a_service_that_was_between_stop_and_start_is_up_after_a_reset(make: Make) -> None:
    """A restart was cut off there: nobody wanted it down."""
    bench = make()
    bench.managers["ollama"].stop(None, 1)
    with bench.store.transaction() as tx:
        tx.inventory.hold("ollama", "gpu-remediator", "a restart is under way", bench.clock.now())
    bench.managers["ollama"].calls.clear()
    bench.asks_for("reset")
    bench.act()
    assert bench.run.state == "succeeded"
    assert bench.calls() == ["start"]
    assert bench.held() is None


# A person who was called is not told that all is well while a service is down for it.


def test_an_incident_stays_open_while_its_service_is_still_held_down(make: Make) -> None:
    bench = make()
    bench.asks_for("reset")
    bench.reset.does = lambda uuid: True
    bench.act()
    assert bench.run.state == "failed"
    assert bench.held() == "its GPU is to be reset"
    # Somebody resets the card by hand, and forgets the service.
    bench.card.recovery_action = "none"
    bench.resolve(RECOVERY)
    bench.pass_time(30)
    incident = bench.incident(RECOVERY, Target("gpu", bench.uuids[0]))
    assert incident is not None
    assert incident.state == "needs_human"
    with bench.store.transaction() as tx:
        tx.inventory.release("ollama")
    bench.pass_time(5)
    assert bench.incident(RECOVERY, Target("gpu", bench.uuids[0])) is None


# A wait for a cooler card must not keep it from being cooled.


def test_a_card_is_capped_while_a_stop_for_heat_waits_for_it_to_cool(make: Make) -> None:
    """Somebody else's work heats it on: only a cap helps."""
    bench = make(playbooks=STARTS_AGAIN)
    heat(bench, 95.0)
    bench.fire(HOT)
    bench.evaluate()

    def warm() -> None:
        bench.card.heat_by_power(full=84.5, capped=70.0)
        bench.fire("GPUTemperatureWarning")
        for run in bench.evaluate():
            bench.executor.execute(run)

    later(bench, 5, lambda: heat(bench, 84.5))
    later(bench, 20, warm)
    bench.execute()
    assert bench.card.watts == 320.0
    assert sorted(ends(bench)) == [("emergency-stop", "succeeded"), ("throttle-gpu", "succeeded")]
    assert bench.calls() == ["stop", "start"]


# Whatever ended the run that was to start a service: somebody hears that nobody does.


def pause(bench: DeviceBench) -> None:
    with bench.store.transaction() as tx:
        tx.set_meta(PAUSED, "maintenance")


def test_a_pause_that_keeps_a_start_back_is_not_forgotten(make: Make) -> None:
    bench = make(playbooks=STARTS_AGAIN)
    heat(bench, 95.0)
    bench.fire(HOT)
    bench.evaluate()
    later(bench, 5, lambda: heat(bench, 60.0))
    later(bench, 20, lambda: pause(bench))
    bench.execute()
    bench.resolve(HOT)
    assert (bench.run.state, bench.run.reason) == ("cancelled", "paused")
    bench.tick_housekeeper()
    incident = bench.incident(HOT)
    assert incident is not None
    assert (incident.state, incident.reason) == ("needs_human", "left_down")
    assert "ollama" in bench.events("left_down")[0]["sentence"]
    with bench.store.transaction() as tx:
        tx.incidents.close(incident.id, bench.clock.now())
    bench.tick_housekeeper()
    assert bench.incident(HOT) is None, "who acknowledged it has heard"


def test_a_stop_that_was_to_last_calls_nobody_later(make: Make) -> None:
    bench = make()
    heat(bench, 95.0)
    bench.fire(HOT)
    bench.evaluate()
    later(bench, 5, lambda: heat(bench, 60.0))
    bench.execute()
    bench.resolve(HOT)
    bench.tick_housekeeper()
    assert bench.held() is not None
    assert bench.incident(HOT) is None
    assert bench.events("left_down") == []


def test_nobody_is_called_for_a_service_while_its_card_is_being_reset(make: Make) -> None:
    bench = make()
    bench.asks_for("reset")
    bench.evaluate()

    def resets(uuid: str) -> bool:
        bench.tick_housekeeper()
        return bench.reset.works(uuid)

    bench.reset.does = resets
    bench.execute()
    bench.tick_housekeeper()
    assert bench.run.state == "succeeded"
    assert bench.events("left_down") == []


def test_who_was_told_once_is_not_told_twice(make: Make) -> None:
    bench = make()
    bench.asks_for("reset")
    bench.reset.does = lambda uuid: True
    bench.act()
    bench.tick_housekeeper()
    incident = bench.incident(RECOVERY)
    assert incident is not None
    assert (incident.state, incident.reason) == ("needs_human", "not_reset")
    assert bench.events("left_down") == []
