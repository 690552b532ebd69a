"""Names of containers, asked for beside: who wants one gets what is known, and never waits."""

from __future__ import annotations

import importlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from exporter.clock import Clock
from exporter.errors import EngineError

_SHORT = 12
# A container can be renamed.
_KEPT_SECONDS = 600.0
_PAUSE_SECONDS = 60.0
_LIMIT = 1024


def short(container_id: str) -> str:
    """Return what stands for a container whose name is not known."""
    return container_id[:_SHORT]


class ContainerNames:
    """Asks the engine behind a Unix socket, in a thread of its own, one container at a time."""

    def __init__(
        self,
        socket_path: Path,
        clock: Clock,
        say: Callable[[str], None],
        ask: Callable[[str, Path], str] | None = None,
    ) -> None:
        """Nothing is asked yet.

        Args:
            socket_path: of Docker or Podman.
            clock: the time.
            say: gets a sentence when the engine begins to fail, and when it answers again.
            ask: gives the name of an id or raises an EngineError; the engine's own by default.
        """
        self._path = socket_path
        self._clock = clock
        self._say = say
        self._ask = ask
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, float]] = {}
        self._asked: queue.Queue[str] = queue.Queue(_LIMIT)
        self._waiting: set[str] = set()
        self._failing = ""
        self._ask_again_at = 0.0
        self._thread: threading.Thread | None = None

    def of(self, container_id: str) -> str:
        """Return its name if it is known by now, else the beginning of its id."""
        now = self._clock.monotonic()
        with self._lock:
            name, until = self._known.get(container_id, ("", 0.0))
            if now >= until and now >= self._ask_again_at:
                self._want(container_id)
        return name or short(container_id)

    def _want(self, container_id: str) -> None:
        if container_id in self._waiting or self._asked.full():
            return
        self._waiting.add(container_id)
        self._asked.put_nowait(container_id)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="containers", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            container_id = self._asked.get()
            try:
                name, failure = self._question()(container_id, self._path), ""
            except EngineError as error:
                name, failure = "", str(error)
            self._take(container_id, name, failure)

    def _question(self) -> Callable[[str, Path], str]:
        if self._ask is None:
            # An HTTP client is big, and most exporters have no socket.
            self._ask = importlib.import_module("exporter.container_engine").name_of
        return self._ask

    def _take(self, container_id: str, name: str, failure: str) -> None:
        now = self._clock.monotonic()
        with self._lock:
            self._waiting.discard(container_id)
            if failure:
                self._ask_again_at = now + _PAUSE_SECONDS
            else:
                self._known.pop(container_id, None)
                self._known[container_id] = (name, now + _KEPT_SECONDS)
                while len(self._known) > _LIMIT:
                    del self._known[next(iter(self._known))]
            changed, self._failing = bool(failure) != bool(self._failing), failure
        if changed:
            self._say(f"names of containers: {failure or f'{self._path} answers again'}")
