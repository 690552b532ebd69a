"""What goes on and on is recorded when it begins and when it changes, not each time it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from remediator.config.windows import WindowConfig
from remediator.engine.gathering import PAUSED
from tests.remediator.engine.bench import Bench

Make = Callable[..., Bench]
SHUTDOWN, DOWN = "GPUTemperatureShutdown", "LLMServiceDown"


def fire_on(bench: Bench, seconds: float) -> int:
    """Let the alerts go on, with their repeats; how many records that made."""
    before = len(bench.audit)
    for _ in range(round(seconds / 20)):
        for uuid in bench.uuids:
            bench.fire(SHUTDOWN, uuid=uuid)
        bench.pass_time(20, step=5)
    return len(bench.audit) - before


def test_a_storm_of_stops_is_recorded_once_while_it_lasts(make_bench: Make) -> None:
    quick = {
        "steps": [{"action": "stop_service", "because": "hot"}],
        "verify": {"signal": "temperature", "level": "critical"},
        "within": "1s",
    }
    bench = make_bench(
        gpus=6, services=("ollama",), playbooks={"emergency-stop": {"rungs": [quick]}}
    )
    for uuid in bench.uuids:
        bench.cards[uuid].celsius = 92.0
    fire_on(bench, 60)
    assert len(bench.events("breaker_opened")) == 1
    # So long as the first stops count, the refused cards are looked at every 30 s and only once told of.
    assert fire_on(bench, 200) == 0
    refused = [run for run in bench.runs if run.reason == "breaker_open"]
    stopped = [run for run in bench.runs if run.destructive]
    assert len(stopped) == 2
    assert len(refused) <= 4
    # The next two begin when those are forgotten: ten records each at the most, in half an hour.
    assert fire_on(bench, 1800) <= 6 * 10 * 2


@pytest.mark.parametrize("gate", ["kill switch", "pause", "opt-out", "window"])
def test_what_is_kept_back_for_a_while_is_recorded_once(make_bench: Make, gate: str) -> None:
    bench = make_bench(services=("ollama",))
    if gate == "kill switch":
        bench.config.kill_switch.touch()
    elif gate == "pause":
        with bench.store.transaction() as tx:
            tx.set_meta(PAUSED, "a person works here")
    elif gate == "opt-out":
        services = tuple(replace(s.config, remediate=False) for s in bench.world.services.values())
        bench.config = replace(bench.config, services=services)
        bench.restart()
    else:
        window = WindowConfig("always", "00:00", "24:00")
        bench.config = replace(bench.config, windows=(window,))
        bench.restart()
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.pass_time(60)
    before = len(bench.audit)
    for _ in range(20):
        bench.fire(DOWN, service="ollama")
        bench.pass_time(60, step=10)
    assert len(bench.audit) == before
    assert bench.runs == []
