"""Keeps the backend open: a session for as long as it goes well, and then another one."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from exporter.attribution import NameProcesses
from exporter.backends.base import Backend, Device, Enumeration, OpensApart
from exporter.card_opener import CardOpener, Retry
from exporter.clock import Clock
from exporter.device_sampler import DeviceSampler, Emit, Running, Schedule
from exporter.errors import BackendError
from exporter.event_watch import EventWatcher, TimedEvents
from exporter.frames import ENUMERATION, BackendFrame, Frame, XidFrame
from exporter.readings import BackendReason
from exporter.roster import Roster
from exporter.session import Session
from exporter.version_asker import VersionAsker

EVENTS = "events"
# A call that takes longer makes opening again wait: it would hold up the healthy GPUs.
_STUCK_SECONDS = 2.0


class Collector:
    """Keeps a session open: opens again after a failure, a fault or a change of the devices.

    Closing a driver to open it again may hang. Where cards are opened apart and some of them are read,
    another process is to do it (`wants_successor`), while this one reads on.
    """

    def __init__(
        self,
        backend: Backend,
        schedule: Schedule,
        emit: Emit,
        clock: Clock,
        name_processes: NameProcesses = list,
        expected: Iterable[str] = (),
    ) -> None:
        """Put it together; a card of `expected` (uuids) that is not there is looked for."""
        self.running = Running(clock)
        self.wants_successor = False
        self._backend = backend
        self._schedule = schedule
        self._emit = emit
        self._clock = clock
        self._name_processes = name_processes
        self._stop = threading.Event()
        self._for_good = False
        self._session: Session | None = None
        self._events: TimedEvents | None = None
        self._apart = backend if isinstance(backend, OpensApart) else None
        self._seen = set(expected) if self._apart is not None else set()
        self._pause = schedule.retry
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def running_since(self) -> dict[str, float]:
        """When each call that has not come back began (monotonic); a wait counts when it is overdue."""
        running, session = self.running.since(), self._session
        overdue = None if self._events is None else self._events.overdue_since()
        if overdue is not None:
            running[EVENTS] = overdue
        if session is not None and session.roster.blind():
            running[ENUMERATION] = session.roster.started
        return running

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

    def heard_xid(self, uuid: str) -> None:
        """Take that a GPU had an Xid error, of which others than the driver told."""
        session = self._session
        if session is not None:
            session.heard_xid(uuid)

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
        fingerprint = None
        try:
            fingerprint = self._backend.fingerprint()
            found = self._found()
            self._session = self._session_of(found, started)
            driver, cuda = found.driver_version, found.cuda_version
            self._emit(
                BackendFrame(self._backend.name, up=True, driver_version=driver, cuda_version=cuda)
            )
            self._session.roster.begin()
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
        return _Watch(self._clock.monotonic(), fingerprint)

    def _found(self) -> Enumeration:
        return self._backend.open() if self._apart is None else self._apart.begin()

    def _session_of(self, found: Enumeration, started: float) -> Session:
        name, schedule, clock = self._backend.name, self._schedule, self._clock
        roster = Roster(name, found, self._emit, clock, started, schedule.opening)
        samplers = [self._sampler(device) for device in found.devices]
        samplers += [self._sampler(CardOpener(card, roster, self._retry())) for card in found.cards]

        def heard(frame: Frame) -> None:
            self._emit(frame)
            for sampler in samplers:
                if isinstance(frame, XidFrame) and frame.uuid == sampler.uuid:
                    sampler.heard_xid()

        events = versions = None
        if found.events is not None:
            self._events = TimedEvents(found.events, clock)
            events = EventWatcher(self._events, heard, clock)
        if found.versions is not None:
            ask, retry = found.versions, self._retry()
            versions = VersionAsker(ask, roster, self._emit, self.running, clock, retry)
        return Session(self._backend, roster, samplers, events, versions)

    def _retry(self) -> Retry:
        return Retry(self._clock, self._schedule.retry, self._schedule.retry_limit)

    def _sampler(self, device: Device | CardOpener) -> DeviceSampler:
        return DeviceSampler(
            device,
            self._schedule,
            self._emit,
            self.running,
            self._clock,
            self._name_processes,
        )

    def _wait_for_reason_to_reopen(self, watch: _Watch) -> bool:
        calm_since = check_at = self._clock.monotonic()
        changed = False
        while not self._clock.wait(self._stop, 0.1):
            now = self._clock.monotonic()
            troubled = self._is_troubled()
            if troubled or self._is_opening():
                # How it is will only show: a card that opens slowly must not have all opened without end.
                calm_since = now
            if now >= calm_since + self._schedule.retry * 2:
                self._pause = self._schedule.retry
            if now >= check_at + self._schedule.check:
                check_at = now
                changed = self._backend.fingerprint() != watch.fingerprint
            wanted = (troubled or changed) and not self._stuck(now)
            others_wait = wanted and self._others_would_wait()
            self.wants_successor = others_wait and not self._has_stuck()
            if not wanted or others_wait:
                continue
            if troubled and now >= watch.opened_at + self._pause:
                self._pause = min(self._pause * 2, self._schedule.retry_limit)
                return True
            if changed and not troubled:
                return True
        return True

    def _others_would_wait(self) -> bool:
        session = self._session
        if self._apart is None or session is None or session.roster.is_gone():
            return False
        return session.anyone_well()

    def _has_stuck(self) -> bool:
        # A successor knows nothing of them, and would leave its own behind: again and again.
        return self._apart is not None and self._apart.has_stuck()

    def _is_troubled(self) -> bool:
        """Tell whether it did not open, or not with every GPU that was ever seen, or lost one since."""
        session = self._session
        if session is None:
            return True
        session.roster.look()
        self._seen |= session.roster.present()
        incomplete = session.roster.incomplete(self._seen)
        return incomplete or session.needs_reopening() or session.backend_gone()

    def _is_opening(self) -> bool:
        return self._session is not None and self._session.roster.opening()

    def _stuck(self, now: float) -> bool:
        if self._is_opening():
            return True
        return any(now - since > _STUCK_SECONDS for since in self.running.since().values())


@dataclass(frozen=True, slots=True)
class _Watch:
    """What to compare with while a session is open."""

    opened_at: float
    fingerprint: object
