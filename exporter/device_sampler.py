"""The sampling thread of one GPU: a driver call that hangs stops this GPU only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from exporter.attribution import NameProcesses, cap
from exporter.backends.base import Device
from exporter.card_opener import CardOpener
from exporter.clock import Clock
from exporter.errors import BackendError, DeviceFault, ReadingError
from exporter.frames import (
    ENUMERATION,
    ErrorsFrame,
    FaultFrame,
    Frame,
    HealthFrame,
    ProcessesFrame,
    SampleFrame,
    XidFrame,
)
from exporter.readings import FaultReason

Emit = Callable[[Frame], None]
_HEALTH = "health"
# After an Xid the driver may ask for a reset: for so long its health is read with each sample.
_ALERT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """How often what is read, in seconds.

    Attributes:
        sample: the readings.
        processes: the process lists, which cost the driver milliseconds.
        health: what changes seldom: ECC, remapped rows, recovery action.
        check: looking whether GPUs came or went.
        retry: the first pause before opening again what failed; it doubles up to `retry_limit`.
        opening: how long opening one GPU may take before it counts as one that does not answer.
        process_limit: how many processes a GPU are told apart.
    """

    sample: float = 1.0
    processes: float = 15.0
    health: float = 30.0
    check: float = 10.0
    retry: float = 1.0
    retry_limit: float = 60.0
    opening: float = 10.0
    process_limit: int = 128


class Running:
    """Which calls are going on, and since when: what the heartbeat tells."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since: dict[str, float] = {}

    def begin(self, what: str) -> None:
        """Note that a call into the driver starts."""
        with self._lock:
            self._since[what] = self._clock.monotonic()

    def end(self, what: str) -> None:
        """Note that it came back."""
        with self._lock:
            self._since.pop(what, None)

    def since(self) -> dict[str, float]:
        """When each call that has not come back began (monotonic)."""
        with self._lock:
            return dict(self._since)


@dataclass(slots=True)
class _Seldom:
    """A collection that not every pass of a sampler makes.

    Attributes:
        due: when it is made next (monotonic).
        pause: seconds from the first time to the second; from then on it is `interval`.
    """

    collector: str
    collect: Callable[[], None]
    interval: float
    due: float
    pause: float

    def made(self, now: float) -> None:
        """Note that it was made."""
        self.due, self.pause = now + self.pause, self.interval


class DeviceSampler:
    """The thread of one GPU: it reads it, and opens it first where that is still to be done."""

    def __init__(
        self,
        device: Device | CardOpener,
        schedule: Schedule,
        emit: Emit,
        running: Running,
        clock: Clock,
        name_processes: NameProcesses = list,
    ) -> None:
        self._opener = device if isinstance(device, CardOpener) else None
        self._device = None if isinstance(device, CardOpener) else device
        self.faulted = False
        self.recovered = False
        self._answered = False
        self.backend_gone = threading.Event()
        self._schedule = schedule
        self._emit = emit
        self._running = running
        self._clock = clock
        self._name_processes = name_processes
        self._alert_until = clock.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def uuid(self) -> str:
        """Which GPU it is; empty before it was opened."""
        return "" if self._device is None else self._device.info.uuid

    @property
    def well(self) -> bool:
        """Tell whether it is read."""
        return self._answered and not self.faulted and not self.backend_gone.is_set()

    def resume(self) -> None:
        """Begin to sample, or go on if it was asked to stop and has not."""
        self._stop.clear()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def heard_xid(self) -> None:
        """Look at its health at once: what was read of it before the Xid is not how it is."""
        self._alert_until = self._clock.monotonic() + _ALERT_SECONDS

    def stop(self) -> None:
        """Ask the thread to end after the call that it is in."""
        self._stop.set()

    def join(self, timeout: float) -> bool:
        """Wait for it; false when its call did not come back in `timeout` seconds."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if self._device is None and self._opener is not None:
            self._device = self._open(self._opener)
        if self._device is None or self._stop.is_set():
            return
        threading.current_thread().name = f"gpu-{self.uuid}"
        self._sample_until_stopped(self._device)

    def _open(self, opener: CardOpener) -> Device | None:
        threading.current_thread().name = f"opening-{opener.index}"
        what = f"opening GPU {opener.index}"
        self._running.begin(what)
        try:
            return opener.open()
        except BackendError:
            self.backend_gone.set()
        except Exception as error:  # noqa: BLE001  a bug in opening one GPU must show, and hold up no other
            now, message = self._clock.monotonic(), f"{type(error).__name__}: {error}"
            self._emit(FaultFrame("", now, ENUMERATION, "bug", message=message))
        finally:
            self._running.end(what)
        return None

    def _sample_until_stopped(self, device: Device) -> None:
        due = self._clock.monotonic()
        seldom = self._seldom(device, due)
        while not self._stop.is_set():
            self._guarded("sample", partial(self._sample, device))
            if self._opener is not None and not self.faulted and self._opener.is_due():
                self._guarded(ENUMERATION, self._opener.ask_again)
            for one in seldom:
                if not self.faulted and self._is_due(one):
                    self._guarded(one.collector, one.collect)
                    one.made(self._clock.monotonic())
            now = self._clock.monotonic()
            # Late: keep the rhythm, and never make up for what was missed.
            missed = max(0, int((now - due) / self._schedule.sample))
            due += (missed + 1) * self._schedule.sample
            self._clock.wait(self._stop, due - now)

    def _seldom(self, device: Device, due: float) -> tuple[_Seldom, ...]:
        processes, health = self._schedule.processes, self._schedule.health
        # How busy each process is shows from its second look on: who takes over has no time to wait for it.
        soon = min(self._schedule.sample, processes)
        return (
            _Seldom("processes", partial(self._processes, device), processes, due, soon),
            _Seldom(_HEALTH, partial(self._health, device), health, due, health),
        )

    def _is_due(self, one: _Seldom) -> bool:
        now = self._clock.monotonic()
        return now >= one.due or (one.collector == _HEALTH and now < self._alert_until)

    def _guarded(self, collector: str, collect: Callable[[], None]) -> None:
        started = self._clock.monotonic()
        self._running.begin(self.uuid)
        try:
            collect()
        except DeviceFault as fault:
            self.faulted = True
            self._emit(
                FaultFrame(
                    self.uuid, started, collector, str(fault.reason), fault.reason, str(fault)
                )
            )
        except BackendError as error:
            self.backend_gone.set()
            reason = f"backend_{error.reason}"
            self._emit(FaultFrame(self.uuid, started, collector, reason, message=str(error)))
        except ReadingError as error:
            self._emit(FaultFrame(self.uuid, started, collector, str(error)))
        except Exception as error:  # noqa: BLE001  a bug in reading one GPU must not end its thread
            known = FaultReason.UNKNOWN if collector == "sample" else None
            message = f"{type(error).__name__}: {error}"
            self._emit(FaultFrame(self.uuid, started, collector, "bug", known, message))
        finally:
            self._running.end(self.uuid)

    def _sample(self, device: Device) -> None:
        time, monotonic = self._clock.time(), self._clock.monotonic()
        result = device.sample()
        self.recovered = self.recovered or self.faulted
        self.faulted, self._answered = False, True
        took = self._clock.monotonic() - monotonic
        sample, errors, spans = result.sample, result.errors, result.utilization
        self._emit(SampleFrame(self.uuid, time, monotonic, sample, took, errors, spans))
        for xid in result.xids:
            self._emit(XidFrame(self.uuid, time, xid))
            self.heard_xid()

    def _processes(self, device: Device) -> None:
        monotonic = self._clock.monotonic()
        result = device.processes()
        if result.errors:
            self._emit(ErrorsFrame(self.uuid, "processes", result.errors))
        found = result.processes
        if found is None:
            self._emit(ProcessesFrame(self.uuid, monotonic))
            return
        named = self._name_processes(cap(found, self._schedule.process_limit))
        took = self._clock.monotonic() - monotonic
        self._emit(ProcessesFrame(self.uuid, monotonic, tuple(named), len(found), took))

    def _health(self, device: Device) -> None:
        monotonic = self._clock.monotonic()
        result = device.health()
        took = self._clock.monotonic() - monotonic
        self._emit(HealthFrame(self.uuid, monotonic, result.health, took, result.errors))
