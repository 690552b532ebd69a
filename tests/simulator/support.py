"""What the simulator's tests share: a clock that only moves when told, and a plain HTTP caller."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from threading import Thread
from typing import Any

from simulator.gpu import stable_uuid
from simulator.httpd import App, Server
from simulator.profiles import PROFILES
from simulator.world import World

GIB = 1024**3
CARD = stable_uuid(0)


class ManualClock:
    """A clock that stands still until it is moved; sleeping moves it."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def time(self) -> float:
        return 1_763_760_000.0 + self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeProcesses:
    """A process table by pid and start time."""

    def __init__(self, **_: float) -> None:
        self.started = {100: 1.0, 200: 2.0}

    def started_at(self, pid: int) -> float | None:
        return self.started.get(pid)


class SmallWorld:
    """A world with one A100 on a manual clock."""

    def __init__(self, *, gpus: int = 1, profile: str = "a100-40gb", time_scale: float = 5) -> None:
        self.clock = ManualClock()
        self.processes = FakeProcesses()
        self.world = World(
            clock=self.clock,
            processes=self.processes,
            profile=PROFILES[profile],
            gpus=gpus,
            time_scale=time_scale,
        )

    def pass_time(self, seconds: float, step: float = 0.1) -> None:
        for _ in range(round(seconds / step)):
            self.clock.now += step
            self.world.advance()

    def card(self, uuid: str = CARD) -> dict[str, Any]:
        return self.world.gpu(uuid)

    def inject(self, fault: str, uuid: str = CARD, **parameters: Any) -> str:
        return self.world.inject({"fault": fault, "gpu": uuid, **parameters})

    def attach(self, pid: int = 100, *, load: float = 0.0, memory: int = GIB) -> dict[str, Any]:
        body = {"pid": pid, "name": "ollama", "gpu": CARD}
        return self.world.attach(body | {"memory_bytes": memory, "load_ratio": load})


@contextmanager
def serving(app: App) -> Iterator[tuple[str, int]]:
    """Serve an app on a free loopback port."""
    server = Server(("127.0.0.1", 0), app)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield "127.0.0.1", server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def call(
    address: tuple[str, int],
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: dict[str, str] | None = None,
    timeout: float = 20,
) -> tuple[int, Any]:
    """One request; returns the status and the JSON of the answer (or its text)."""
    connection = HTTPConnection(*address, timeout=timeout)
    try:
        content = body if body is None or isinstance(body, str) else json.dumps(body)
        connection.request(method, path, content, headers or {})
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    try:
        return response.status, json.loads(text)
    except ValueError:
        return response.status, text
