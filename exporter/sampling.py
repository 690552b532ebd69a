"""Keeps the backend open, with a thread for each GPU and one for what the driver tells itself."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from exporter.attribution import NameProcesses
from exporter.backends.base import Backend, Device, Enumeration, EventSource, XidEvent
from exporter.clock import Clock
from exporter.device_sampler import DeviceSampler, Emit, Running, Schedule
from exporter.errors import BackendError
from exporter.event_watch import EventWatcher
from exporter.frames import BackendFrame, DevicesFrame, Frame, XidFrame
from exporter.readings import BackendReason

ENUMERATION = "enumeration"
EVENTS = "events"
# A call that takes longer makes opening again wait: it would hold up the healthy GPUs.
_STUCK_SECONDS = 2.0
# A wait for events comes back a little late on a busy machine.
_LATE_SECONDS = 1.0


class TimedEvents:
    """An event source that knows when a wait should have been over: then it is a call that hangs."""

    def __init__(self, source: EventSource, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._due: float | None = None

    def wait(self, seconds: float) -> Sequence[XidEvent]:
        """Wait as the source does."""
        self._due = self._clock.monotonic() + seconds
        try:
            return self._source.wait(seconds)
        finally:
            self._due = None

    def close(self) -> None:
        """Let go of the source."""
        self._source.close()

    def overdue_since(self) -> float | None:
        """When the wait that is going on should have come back (monotonic); None while it may take."""
        due = self._due
        late = due is not None and self._clock.monotonic() >= due + _LATE_SECONDS
        return due if late else None


class Session:
    """The backend opened once, a sampler for each GPU that it found, and one for its events."""

    def __init__(
        self, backend: Backend, samplers: Iterable[DeviceSampler], events: EventWatcher | None
    ) -> None:
        self._backend = backend
        self._samplers = tuple(samplers)
        self._events = events

    def resume(self) -> None:
        """Start every thread that is not running."""
        for sampler in self._samplers:
            sampler.resume()
        if self._events is not None:
            self._events.resume()

    def backend_gone(self) -> bool:
        """Tell whether a thread found that the whole backend is gone."""
        if self._events is not None and self._events.backend_gone.is_set():
            return True
        return any(sampler.backend_gone.is_set() for sampler in self._samplers)

    def needs_reopening(self) -> bool:
        """Tell whether a GPU is down, or was: what was read of it when it was opened is old."""
        return any(sampler.faulted or sampler.recovered for sampler in self._samplers)

    def close(self, timeout: float) -> bool:
        """End all samplers and close the backend.

        Returns:
            False when a call did not come back in `timeout` seconds: then nothing is closed,
            because closing under a running call is not safe.
        """
        # First what takes longest to stop: the GPUs are read meanwhile.
        if self._events is not None and not self._events.stop():
            return False
        for sampler in self._samplers:
            sampler.stop()
        if not all(sampler.join(timeout) for sampler in self._samplers):
            return False
        if self._events is not None:
            self._events.close()
        self._backend.close()
        return True


class Collector:
    """Keeps a session open: opens again after a failure, a fault or a change of the devices."""

    def __init__(
        self,
        backend: Backend,
        schedule: Schedule,
        emit: Emit,
        clock: Clock,
        name_processes: NameProcesses = list,
    ) -> None:
        self.running = Running(clock)
        self._backend = backend
        self._schedule = schedule
        self._emit = emit
        self._clock = clock
        self._name_processes = name_processes
        self._stop = threading.Event()
        self._for_good = False
        self._session: Session | None = None
        self._events: TimedEvents | None = None
        self._seen: set[str] = set()
        self._pause = schedule.retry
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def running_since(self) -> dict[str, float]:
        """When each call that has not come back began (monotonic); a wait counts when it is overdue."""
        overdue = None if self._events is None else self._events.overdue_since()
        return self.running.since() | ({} if overdue is None else {EVENTS: overdue})

    def start(self) -> None:
        """Begin in a thread of its own: opening a driver may hang too."""
        self._thread.start()

    def request_stop(self) -> None:
        """Ask everything to end after the call that it is in."""
        self._for_good = True
        self._stop.set()

    def let_go(self) -> None:
        """Ask everything to end; while one call is stuck the other GPUs are read on."""
        self._stop.set()

    def keep(self) -> None:
        """Take that back; what has been closed already is opened again."""
        self._stop.clear()

    def join(self, timeout: float) -> bool:
        """Wait for the end; false while a driver call has not come back."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            watch = self._open()
            while self._wait_for_reason_to_reopen(watch) and not self._close():
                pass

    def _close(self) -> bool:
        self.running.begin(ENUMERATION)
        try:
            if self._session is None or self._session.close(timeout=0.3):
                self._session = None
                return True
        finally:
            self.running.end(ENUMERATION)
        if not self._for_good:
            # One call is stuck: the other GPUs must not wait for it.
            self._session.resume()
        return False

    def _open(self) -> _Watch:
        started = self._clock.monotonic()
        self.running.begin(ENUMERATION)
        fingerprint, troubled = None, True
        try:
            fingerprint = self._backend.fingerprint()
            found = self._backend.open()
            present = {device.info.uuid for device in found.devices}
            self._seen |= present
            troubled = bool(found.failed) or present != self._seen
            self._announce(found, self._clock.monotonic() - started)
            self._session = self._session_of(found)
            self._session.resume()
        except BackendError as error:
            self._emit(
                BackendFrame(self._backend.name, up=False, reason=error.reason, message=str(error))
            )
        except Exception as error:  # noqa: BLE001  a bug here must show as a fault, not as silence
            message = f"{type(error).__name__}: {error}"
            unknown = BackendReason.UNKNOWN
            self._emit(BackendFrame(self._backend.name, up=False, reason=unknown, message=message))
        finally:
            self.running.end(ENUMERATION)
        return _Watch(self._clock.monotonic(), fingerprint, troubled)

    def _session_of(self, found: Enumeration) -> Session:
        samplers = {one.info.uuid: self._sampler(one) for one in found.devices}

        def heard(frame: Frame) -> None:
            self._emit(frame)
            if isinstance(frame, XidFrame) and frame.uuid in samplers:
                samplers[frame.uuid].heard_xid()

        events = None
        if found.events is not None:
            self._events = TimedEvents(found.events, self._clock)
            events = EventWatcher(self._events, heard, self._clock)
        return Session(self._backend, samplers.values(), events)

    def _sampler(self, device: Device) -> DeviceSampler:
        return DeviceSampler(
            device,
            self._schedule,
            self._emit,
            self.running,
            self._clock,
            self._name_processes,
        )

    def _announce(self, found: Enumeration, took: float) -> None:
        driver, cuda = found.driver_version, found.cuda_version
        self._emit(
            BackendFrame(self._backend.name, up=True, driver_version=driver, cuda_version=cuda)
        )
        infos = tuple(device.info for device in found.devices)
        self._emit(DevicesFrame(infos, found.failed, took, found.watched))

    def _wait_for_reason_to_reopen(self, watch: _Watch) -> bool:
        calm_since = check_at = self._clock.monotonic()
        while not self._clock.wait(self._stop, 0.1):
            now = self._clock.monotonic()
            session = self._session
            if (
                watch.troubled
                or session is None
                or session.needs_reopening()
                or session.backend_gone()
            ):
                calm_since = now
                if now >= watch.opened_at + self._pause and not self._stuck(now):
                    self._pause = min(self._pause * 2, self._schedule.retry_limit)
                    return True
                continue
            if now >= calm_since + self._schedule.retry * 2:
                self._pause = self._schedule.retry
            if now >= check_at + self._schedule.check:
                check_at = now
                if self._backend.fingerprint() != watch.fingerprint and not self._stuck(now):
                    return True
        return True

    def _stuck(self, now: float) -> bool:
        return any(now - since > _STUCK_SECONDS for since in self.running.since().values())


@dataclass(frozen=True, slots=True)
class _Watch:
    """What to compare with while a session is open.

    Attributes:
        troubled: it did not open, or not with every GPU that was ever seen.
    """

    opened_at: float
    fingerprint: object
    troubled: bool
