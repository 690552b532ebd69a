"""The thread that asks a driver for its versions, which no reading of a GPU has to wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from exporter.backends.base import Versions
from exporter.card_opener import Retry
from exporter.clock import Clock
from exporter.device_sampler import Emit, Running
from exporter.frames import ENUMERATION, FaultFrame
from exporter.roster import Roster

_WHAT = "versions"
_LOOK_SECONDS = 0.5


class VersionAsker:
    """Asks until both are known, or it has failed too often."""

    def __init__(
        self,
        ask: Callable[[], Versions],
        roster: Roster,
        emit: Emit,
        running: Running,
        clock: Clock,
        retry: Retry,
    ) -> None:
        self._ask = ask
        self._roster = roster
        self._emit = emit
        self._running = running
        self._clock = clock
        self._retry = retry
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def resume(self) -> None:
        """Begin to ask, or go on if it was asked to stop and has not."""
        self._stop.clear()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="driver", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end after the call that it is in."""
        self._stop.set()

    def join(self, timeout: float) -> bool:
        """Wait for it; false when its call did not come back in `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set() and not self._asked():
            while not self._retry.is_due():
                if self._retry.is_over() or self._clock.wait(self._stop, _LOOK_SECONDS):
                    return

    def _asked(self) -> bool:
        """Ask once; true when nothing failed."""
        self._retry.again()
        self._running.begin(_WHAT)
        try:
            told = self._ask()
        except Exception as error:  # noqa: BLE001  a bug here must show, and hold up nothing
            self._failed("bug", f"{type(error).__name__}: {error}")
            return False
        finally:
            self._running.end(_WHAT)
        self._roster.told(told)
        for word in told.errors:
            self._failed(word, "a version of the driver could not be read")
        return not told.errors

    def _failed(self, word: str, message: str) -> None:
        self._emit(FaultFrame("", self._clock.monotonic(), ENUMERATION, word, message=message))
