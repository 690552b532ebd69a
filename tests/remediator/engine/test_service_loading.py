"""A server that comes up is up, so that it does so is exported by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from remediator.metrics import RemediatorCollector, registry_for
from remediator.services import ServiceProbe
from tests.remediator.engine.bench import Bench


@pytest.mark.parametrize(
    ("state", "up", "loading"),
    [
        ("loading", 1.0, 1.0),
        ("ready", 1.0, 0.0),
        ("sleeping", 1.0, 0.0),
        ("refused", 0.0, 0.0),
        ("error", 1.0, 0.0),
        ("silent", 1.0, None),
    ],
)
def test_what_comes_up_is_up_and_says_so(
    make_bench: Callable[..., Bench], state: str, up: float, loading: float | None
) -> None:
    bench = make_bench(services=("ollama",))
    bench.drivers["ollama"].forced = ServiceProbe(state, "")
    bench.prober.probe(bench.world.services["ollama"])
    registry = registry_for(
        RemediatorCollector(
            bench.world, bench.playbooks, bench.counters, bench.intake, bench.prober
        )
    )
    found = [
        registry.get_sample_value(name, {"llm_service": "ollama"})
        for name in ("llm_service_up", "llm_service_loading")
    ]
    assert found == [up, loading]
