"""Several services on one card, and one service on several: neighbours get what is theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remediator.errors import ManagerError
from remediator.managers import ProcessIdentity
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.device_scene import DeviceBench

SHUTDOWN = "GPUTemperatureShutdown"
STUBBORN = "an-old-one"


@pytest.fixture
def two(tmp_path: Path) -> Iterator[DeviceBench]:
    """Two services with models on one card that asks for a reset."""
    bench = DeviceBench(tmp_path / "state", services=("ollama", "vllm"))
    for name, model in (("ollama", "llama"), ("vllm", "qwen")):
        bench.drivers[name].models = {model}
        bench.prober.probe(bench.world.services[name])
    yield bench
    bench.close()


def cannot_start(bench: Bench, name: str) -> None:
    def start(timeout: float) -> ProcessIdentity:
        raise ManagerError(f"{name} did not stay up: exit status 1")

    bench.managers[name].start = start  # type: ignore[method-assign]


@pytest.mark.parametrize(("broken", "well"), [("vllm", "ollama"), ("ollama", "vllm")])
def test_a_service_that_does_not_come_back_after_a_reset_keeps_nobody_from_their_models(
    two: DeviceBench, broken: str, well: str
) -> None:
    cannot_start(two, broken)
    two.asks_for("reset")
    two.act()
    assert (two.run.state, two.run.reason) == ("failed", "error")
    assert f"{broken} did not stay up" in two.run.sentence
    assert two.drivers[well].models == {"llama" if well == "ollama" else "qwen"}
    assert two.drivers[well].canaries, "and it was asked for an answer"
    assert two.drivers[broken].loads == []
    assert len(two.reset.resets) == 1


def test_a_model_that_does_not_load_keeps_nobody_elses_from_being_loaded(two: DeviceBench) -> None:
    def refuse(model: str, timeout: float) -> None:
        raise ManagerError("no")

    two.drivers["ollama"].load = refuse  # type: ignore[method-assign]
    two.asks_for("reset")
    two.act()
    assert two.run.state == "failed"
    assert two.drivers["vllm"].loads == ["qwen"]


def test_a_service_that_does_not_stop_still_keeps_the_card_from_a_reset(two: DeviceBench) -> None:
    def stop(identity: ProcessIdentity | None, timeout: float) -> None:
        raise ManagerError("ollama did not stop within 60 s")

    two.managers["ollama"].stop = stop  # type: ignore[method-assign]
    two.asks_for("reset")
    two.act()
    assert two.run.state == "failed"
    assert two.reset.resets == []
    assert two.drivers["vllm"].models == {"qwen"}, "what was stopped for nothing is back"


class HotPair:
    """Two cards past their shutdown temperature; one service is on both and will not stop."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        first, second = bench.uuids
        self._on(STUBBORN, (first, second))
        self._on("first", (first,))
        self._on("second", (second,))
        for uuid in bench.uuids:
            bench.cards[uuid].celsius = 95.0
        self.meanwhile: Any = lambda: None
        bench.managers[STUBBORN].stop = self._stop  # type: ignore[method-assign]

    def _on(self, name: str, uuids: tuple[str, ...]) -> None:
        one = self.bench.world.services[name]
        config = replace(one.config, gpus=uuids)
        self.bench.world.services[name] = replace(one, config=config)

    def _stop(self, identity: ProcessIdentity | None, timeout: float) -> None:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        self.bench.clock.advance(timeout)
        raise ManagerError(f"{STUBBORN} did not stop within {timeout:g} s")


def test_two_stops_for_heat_do_not_wait_for_each_other(make_bench: Any) -> None:
    bench = make_bench(
        gpus=2, services=(STUBBORN, "first", "second"), limits={"breaker_targets": 3}
    )
    pair = HotPair(bench)
    seen: list[bool] = []

    def second_card() -> None:
        """While the first card's stop still waits for the stubborn service."""
        began = bench.clock.passed
        bench.fire(SHUTDOWN, uuid=bench.uuids[1])
        (run,) = bench.evaluate()
        bench.executor.execute(run)
        seen.append(bench.managers["second"].identity is None)
        assert bench.clock.passed - began < 300, "it waited for the other card's turn"

    pair.meanwhile = second_card
    bench.fire(SHUTDOWN, uuid=bench.uuids[0])
    bench.act()
    assert seen == [True]
    assert bench.managers["first"].identity is None
    first, second = bench.runs
    assert (first.state, second.state) == ("failed", "failed")
    assert not any(run.reason == "target_busy" for run in bench.runs)
    with bench.store.reading() as tx:
        held = [tx.inventory.service(name).held for name in ("first", "second")]
    assert held == [True, True]
    assert bench.audit_holds()
