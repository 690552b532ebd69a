"""A server that says it let go of its memory and did not: that is said, and the ladder moves on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from remediator import services
from remediator.config import ServiceConfig, Timing
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.dialects import Dialect, Request, served
from tests.remediator.engine.memory_scene import GIB
from tests.remediator.engine.triton_dialect import Triton

ALERT = "GPUMemoryWarning"
VERIFY = {"verify": {"signal": "memory", "level": "warning"}, "within": "30s"}
LADDER = {
    "clear-cache": {
        "rungs": [
            {"steps": [{"action": "unload_models", "settle_within": "2s"}], **VERIFY},
            {"steps": [{"action": "restart_service"}, {"action": "wait_ready"}], **VERIFY},
        ]
    }
}


@dataclass
class Ollama(Dialect):
    """Ollama (server/routes.go, August 2026): a model with its size, that an unload takes away."""

    sizes: dict[str, int] = field(default_factory=lambda: {"big:latest": 37 * GIB})

    def answer(self, request: Request) -> tuple[int, Any]:
        if request.path == "/api/ps":
            return 200, {"models": [{"model": n, "size_vram": s} for n, s in self.sizes.items()]}
        assert (request.path, request.body["keep_alive"]) == ("/api/generate", 0)
        self.sizes.pop(request.body["model"], None)
        return 200, {"done": True, "done_reason": "unload"}


@pytest.fixture(params=["ollama", "triton"])
def server(request: pytest.FixtureRequest) -> Iterator[Dialect]:
    one = Ollama() if request.param == "ollama" else Triton(states={"big": "READY"})
    with served(one):
        yield one


def wire(bench: Bench, server: Dialect) -> str:
    """Put the real driver of `server` into the bench; its kind."""
    kind = type(server).__name__.lower()
    options = {"model_control": "explicit"} if kind == "triton" else {}
    config = ServiceConfig("llm", kind, server.url, {}, gpus="all", options=options)
    service = bench.world.services["llm"]
    driver = services.create(config, Timing())
    bench.world.services["llm"] = dataclasses.replace(  # type: ignore[index]
        service, config=config, driver=driver
    )
    return kind


def test_it_says_freed_0_of_the_expected_and_the_ladder_moves_on(
    make_bench: Callable[..., Bench], server: Dialect
) -> None:
    bench = make_bench(services=("llm",), playbooks=LADDER)
    kind = wire(bench, server)
    bench.card.memory_used = 37 * GIB
    manager = bench.managers["llm"]
    start = manager.start

    def starting(timeout: float) -> object:
        # Only the end of the process gives the memory back.
        bench.card.memory_used = 2 * GIB
        return start(timeout)

    manager.start = starting  # type: ignore[method-assign,assignment]
    bench.fire(ALERT)
    bench.pass_time(120)
    first, restart, _ = bench.steps()
    said = {
        "ollama": "unloaded big:latest; freed 0 of the expected 37.0 GiB",
        # Triton does not say how much memory a model has.
        "triton": "unloaded big; freed 0.0 GiB; it does not say how much to expect",
    }
    assert first.sentence == f"llm {said[kind]}"
    assert (first.state, first.result["reason"]) == ("done", "freed_nothing")
    assert first.result["freed_bytes"] == {bench.uuids[0]: 0}
    assert restart.action == "restart_service"
    assert manager.calls == ["stop 1001", "start 1002"]
    assert (bench.run.state, bench.run.reason) == ("succeeded", "verified")
    assert any(said[kind] in one["sentence"] for one in bench.audit), "and it is in the audit"
