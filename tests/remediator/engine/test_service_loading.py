"""A server that comes up is up, so that it does so is exported by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from remediator.metrics import RemediatorCollector, registry_for
from remediator.services import ServiceProbe
from tests.remediator.engine.bench import Bench


@pytest.mark.parametrize(
    ("state", "up", "loading"),
    [
        ("loading", 1.0, 25.0),
        ("ready", 1.0, 0.0),
        ("sleeping", 1.0, 0.0),
        ("refused", 0.0, 0.0),
        ("error", 1.0, 0.0),
        ("silent", 1.0, None),
    ],
)
def test_what_comes_up_is_up_and_says_for_how_long(
    make_bench: Callable[..., Bench], state: str, up: float, loading: float | None
) -> None:
    bench = make_bench(services=("ollama",))
    look(bench, "loading")
    bench.clock.advance(25)
    look(bench, state)
    assert exported(bench, "llm_service_up") == up
    assert exported(bench, "llm_service_loading_seconds") == loading


def test_a_look_that_it_missed_is_no_new_start_and_an_answer_is(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(services=("ollama",))
    told = []
    for state in ("loading", "silent", "loading", "ready", "loading", "loading"):
        look(bench, state)
        told.append(exported(bench, "llm_service_loading_seconds"))
        bench.clock.advance(10)
    assert told == [0.0, None, 20.0, 0.0, 0.0, 10.0]


def test_how_long_it_may_load_is_configured(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(services=("ollama",))
    assert exported(bench, "llm_service_loading_limit_seconds") == 1800.0
    service = bench.world.services["ollama"]
    config = replace(service.config, loading_limit=7200.0)
    bench.world.services["ollama"] = replace(service, config=config)
    assert exported(bench, "llm_service_loading_limit_seconds") == 7200.0


def look(bench: Bench, state: str) -> None:
    bench.drivers["ollama"].forced = ServiceProbe(state, "")
    bench.prober.probe(bench.world.services["ollama"])


def exported(bench: Bench, name: str) -> float | None:
    collector = RemediatorCollector(
        bench.world, bench.playbooks, bench.counters, bench.intake, bench.prober
    )
    return registry_for(collector).get_sample_value(name, {"llm_service": "ollama"})
