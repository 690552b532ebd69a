"""What a reset does to a cap that was in force, and whom it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from remediator.errors import ConfigError
from remediator.playbooks import load
from remediator.services import ServiceProbe
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.device_scene import HOT, RECOVERY, DeviceBench, heat, later

Make = Callable[..., DeviceBench]


# A cap that was in force before a reset.


def capped(bench: DeviceBench) -> None:
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.fire("GPUTemperatureWarning")
    bench.act()
    assert bench.card.watts == 320.0


def test_a_cap_is_set_again_although_the_reset_did_not_help(make: Make) -> None:
    bench = make()
    capped(bench)

    def resets(uuid: str) -> bool:
        bench.card.watts = 400.0
        return True

    bench.reset.does = resets
    bench.asks_for("reset")
    bench.act()
    assert bench.runs[-1].reason == "not_reset"
    assert bench.card.watts == 320.0
    assert len(bench.open_leases) == 1


def test_a_cap_of_a_card_that_could_not_be_asked_before_the_reset_is_set_again(
    make: Make,
) -> None:
    bench = make()
    capped(bench)
    bench.control.hangs = True

    def resets(uuid: str) -> bool:
        bench.control.hangs = False
        return bench.reset.works(uuid)

    bench.reset.does = resets
    bench.asks_for("reset")
    bench.act()
    assert bench.runs[-1].state == "succeeded"
    assert bench.card.watts == 320.0
    assert len(bench.open_leases) == 1


def test_a_lease_outlives_a_reset_after_which_the_card_does_not_answer(make: Make) -> None:
    bench = make()
    capped(bench)

    def breaks(uuid: str) -> bool:
        bench.card.fault = "lost"
        return True

    bench.reset.does = breaks
    bench.asks_for("reset")
    bench.act()
    assert bench.runs[-1].reason == "not_reset"
    assert len(bench.open_leases) == 1, "nobody knows what its limit is"


# Who is called, and what they read.


def test_an_approval_that_comes_when_it_is_over_calls_nobody(make: Make) -> None:
    bench = make(mode="approve")
    bench.asks_for("reset")
    bench.act()
    bench.card.recovery_action = "none"
    waiting = bench.run.id
    with bench.store.transaction() as tx:
        tx.runs.set_state(waiting, "reserved", bench.clock.now())
    bench.execute()
    assert (bench.run.state, bench.run.reason) == ("refused", "no_fault")
    incident = bench.incident(RECOVERY)
    assert incident is None or incident.state == "refuted"


def test_a_service_that_does_not_answer_after_a_reset_is_not_said_to_be_up(make: Make) -> None:
    bench = make()
    bench.asks_for("reset")
    start = bench.managers["ollama"].start

    def starts(timeout: float) -> Any:
        bench.drivers["ollama"].forced = ServiceProbe("silent", "no answer")
        return start(timeout)

    bench.managers["ollama"].start = starts  # type: ignore[method-assign]
    bench.act()
    assert (bench.run.state, bench.run.reason) == ("failed", "not_ready")
    assert "up again" not in bench.run.sentence


def test_an_approval_that_nobody_gave_wakes_nobody_where_the_playbook_only_tries(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(mode="approve", services=("ollama",))
    bench.card.memory_used = 37 * 2**30
    bench.fire("GPUMemoryWarning")
    bench.act()
    assert bench.run.state == "awaiting_approval"
    bench.clock.advance(bench.config.timing.approval_expires + 1)
    bench.tick_housekeeper()
    assert (bench.run.state, bench.run.reason) == ("refused", "expired")
    assert bench.incident("GPUMemoryWarning") is None


def test_what_waits_for_a_person_stops_no_lighter_run(make: Make) -> None:
    bench = make(playbooks={"device-fault": {"mode": "approve"}})
    heat(bench, 84.0)
    bench.fire("GPUTemperatureWarning")
    bench.evaluate()
    bench.asks_for("reset")
    bench.evaluate()
    throttle, waiting = bench.runs
    assert waiting.state == "awaiting_approval"
    assert throttle.cancel_reason is None


def test_a_stop_for_heat_before_anything_was_tried_uses_no_reset_up(make: Make) -> None:
    bench = make()
    bench.asks_for("drain_and_reset")
    bench.evaluate()
    stop = bench.managers["ollama"].stop

    def hot() -> None:
        heat(bench, 95.0)
        bench.fire(HOT)
        bench.evaluate()
        bench.executor.wake(bench.runs[0].id)

    def stops(*arguments: Any) -> None:
        stop(*arguments)
        bench.managers["ollama"].stop = stop  # type: ignore[method-assign]
        bench.card.strangers = {4242: "leaving"}
        later(bench, 10, hot)

    bench.managers["ollama"].stop = stops  # type: ignore[method-assign]
    bench.execute()
    assert (bench.runs[0].state, bench.runs[0].reason) == ("cancelled", "superseded")
    with bench.store.reading() as tx:
        assert tx.runs.last_reset_tried(bench.uuids[0]) is None


def test_a_reset_may_not_take_longer_than_the_exporter_lets_go() -> None:
    steps = [{"action": "reset_gpu", "within": "10m"}]
    rung = {"steps": steps, "verify": {"signal": "device_fault"}}
    with pytest.raises(ConfigError, match="within"):
        load({"device-fault": {"rungs": [rung]}})
