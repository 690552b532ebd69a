"""The thread that waits for what a driver tells by itself: Xid errors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from exporter.backends.base import EventSource, XidEvent
from exporter.clock import Clock
from exporter.errors import BackendError, ReadingError
from exporter.frames import FaultFrame, Frame, XidFrame

COLLECTOR = "events"
# One wait; also how long the driver may take to let go of us.
_WAIT_SECONDS = 1.0
# A wait for events comes back a little late on a busy machine.
_LATE_SECONDS = 1.0
_PAUSE_LIMIT = 60.0
_T = TypeVar("_T")


class TimedEvents:
    """An event source that knows when a wait should have been over: then it is a call that hangs."""

    def __init__(self, source: EventSource, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._due: float | None = None

    def open(self) -> bool:
        """Begin to listen as the source does."""
        return self._timed(self._source.open, 0.0)

    def wait(self, seconds: float) -> Sequence[XidEvent]:
        """Wait as the source does."""
        return self._timed(lambda: self._source.wait(seconds), seconds)

    def close(self) -> None:
        """Let go of the source."""
        self._timed(self._source.close, 0.0)

    def overdue_since(self) -> float | None:
        """When the wait that is going on should have come back (monotonic); None while it may take."""
        due = self._due
        late = due is not None and self._clock.monotonic() >= due + _LATE_SECONDS
        return due if late else None

    def _timed(self, call: Callable[[], _T], seconds: float) -> _T:
        self._due = self._clock.monotonic() + seconds
        try:
            return call()
        finally:
            self._due = None


class EventWatcher:
    """Waits in turns of a second, so that it can be stopped without breaking a driver call."""

    def __init__(self, source: EventSource, emit: Callable[[Frame], None], clock: Clock) -> None:
        self.backend_gone = threading.Event()
        self._source = source
        self._emit = emit
        self._clock = clock
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def resume(self) -> None:
        """Begin to wait, or go on if it was asked to stop and has not."""
        self._stop.clear()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name=COLLECTOR, daemon=True)
            self._thread.start()

    def stop(self) -> bool:
        """Let go of the source after the wait that it is in; false when a call did not come back in time."""
        self._stop.set()
        if self._thread is None:
            return True
        self._thread.join(2 * _WAIT_SECONDS)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause = _WAIT_SECONDS
        while not self._stop.is_set():
            tells = self._guarded(self._source.open)
            if tells is None:
                self._clock.wait(self._stop, pause)
                pause = min(2 * pause, _PAUSE_LIMIT)
                continue
            if not tells:
                return
            while not self._stop.is_set():
                self._guarded(self._wait)
            # Here, where it holds up no GPU when it does not come back.
            self._source.close()

    def _wait(self) -> None:
        for event in self._source.wait(_WAIT_SECONDS):
            self._emit(XidFrame(event.uuid, self._clock.time(), event.xid))

    def _guarded(self, call: Callable[[], _T]) -> _T | None:
        try:
            return call()
        except BackendError as error:
            self.backend_gone.set()
            self._failed(f"backend_{error.reason}", str(error))
        except ReadingError as error:
            self._failed(str(error), "")
        except Exception as error:  # noqa: BLE001  a bug here must not end the thread
            self._failed("bug", f"{type(error).__name__}: {error}")
        return None

    def _failed(self, reason: str, message: str) -> None:
        self._emit(FaultFrame("", self._clock.monotonic(), COLLECTOR, reason, message=message))
        # A wait that fails at once would be asked again and again.
        self._clock.wait(self._stop, _WAIT_SECONDS)
