"""A service under the `kubernetes` manager on a stand-in API server, in time that the test makes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from remediator import managers
from tests.remediator.drivers.standin_apiserver import Server, serve
from tests.remediator.drivers.standin_cluster import Object

NOW = 1_800_000_000.0
DEPLOYMENT = "PATCH /apis/apps/v1/namespaces/llm/deployments/vllm"
SCALE = f"{DEPLOYMENT}/scale"


class Time:
    """Waiting takes no time, and passes it."""

    def __init__(self) -> None:
        self.passed = 0.0

    def now(self) -> float:
        return NOW + self.passed

    def monotonic(self) -> float:
        return self.passed

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self.passed += max(0.0, seconds)
        return event.is_set()


class Scene:
    """The server, what the store keeps, and the manager of Deployment `vllm` with its options."""

    def __init__(self, url: str, server: Server, clock: Time) -> None:
        self.url, self.server, self.clock = url, server, clock
        self.kept: Mapping[str, Any] = {}

    def manager(self, **options: Any) -> Any:
        def save(kept: Mapping[str, Any]) -> None:
            self.kept = kept

        context = managers.Context(self.clock, lambda: self.kept, save)
        raw = {"type": "kubernetes", "namespace": "llm", "name": "vllm", "url": self.url}
        return managers.create(raw | {"timeout": "30s"} | options, "vllm", context)

    @property
    def deployment(self) -> Object:
        return self.server.workloads["deployments", "vllm"]

    @property
    def replicas(self) -> int:
        return int(self.deployment["spec"]["replicas"])


@contextlib.contextmanager
def scene(certificate: tuple[Path, Path] | None = None) -> Iterator[Scene]:
    """A cluster without anything in it."""
    clock = Time()
    server = Server(clock.now)
    with serve(server, certificate) as url:
        yield Scene(url, server, clock)
