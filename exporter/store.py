"""The store: frames in, immutable snapshots out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from exporter import state_file
from exporter.clock import Clock
from exporter.complaints import Complaints
from exporter.errors import StorageError
from exporter.frames import (
    ENUMERATION,
    BackendFrame,
    DevicesFrame,
    ErrorsFrame,
    FaultFrame,
    Frame,
    HealthFrame,
    HeartbeatFrame,
    LogFrame,
    ProcessesFrame,
    SampleFrame,
    XidFrame,
)
from exporter.gpu_state import Deadlines, GpuState, HistoryPoint
from exporter.inventory import Inventory
from exporter.kernel_log import LogBatch
from exporter.kernel_xids import KernelXids
from exporter.policy import Policy
from exporter.readings import DeviceInfo, FaultReason
from exporter.snapshot import BackendView, Snapshot, WorkerView
from exporter.xid_ledger import XidLedger
from exporter.xid_watch import XidWatch

_log = logging.getLogger(__name__)
# A new worker opens the driver first, which takes seconds without persistence mode.
_RETURN_SECONDS = 15.0


class Store:
    """Merges what the worker says. One thread applies frames, any thread takes snapshots."""

    def __init__(
        self,
        backend: str,
        policy: Policy,
        deadlines: Deadlines,
        inventory: Inventory,
        ledger: XidLedger,
        clock: Clock,
        kernel_xids: KernelXids | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._policy = policy
        self._deadlines = deadlines
        self._inventory = inventory
        self._complaints = Complaints()
        self._xids = XidWatch(ledger, kernel_xids, self._complaints)
        self._clock = clock
        self._backend = BackendView(backend)
        self._worker = WorkerView()
        self._gpus: dict[str, GpuState] = {}
        self._visible: int | None = None
        self._released = False
        self._last_devices: DevicesFrame | None = None
        self._enumeration_seconds: float | None = None
        self._found = ""

    def apply(self, frame: Frame) -> None:
        """Take one frame; one about a GPU that is not known is dropped."""
        with self._lock:
            handle: Callable[..., None] | None = self._handlers().get(type(frame))
            if handle is not None:
                handle(frame)

    def set_worker(self, worker: WorkerView) -> None:
        """Take what the supervisor knows about the worker processes."""
        with self._lock:
            self._worker = worker

    def set_released(self, *, released: bool) -> None:
        """Take that the driver was let go on request, or that it is taken back."""
        with self._lock:
            self._released = released
            now = self._clock.monotonic()
            if not released:
                for state in self._gpus.values():
                    state.taken_back(now + _RETURN_SECONDS)
                return
            for info in self._inventory.missing(self._gpus):
                self._gpus[info.uuid] = GpuState(info, self._policy, self._deadlines, now)
            for state in self._gpus.values():
                state.released()
            # What the worker saw before is not what the next one will.
            self._visible = self._last_devices = None

    def take_log(self, batch: LogBatch) -> None:
        """Take what was read of the kernel log."""
        with self._lock:
            self._xids.take_log(batch, self._clock.time(), self._clock.monotonic())

    def log_unreadable(self, why: str) -> None:
        """Take that there is no kernel log: what the driver tells counts alone."""
        with self._lock:
            self._xids.log_unreadable(why)

    def count_error(self, collector: str, reason: str) -> None:
        """Count a failure that no frame tells of."""
        with self._lock:
            self._complaints.count(collector, reason)

    def take_logged(self) -> set[str]:
        """Return the uuids of the GPUs that the kernel log told of since the last call."""
        with self._lock:
            return self._xids.take_logged() & self._gpus.keys()

    def snapshot(self) -> Snapshot:
        """Return the picture of this moment; what is too old is not in it."""
        with self._lock:
            now = self._clock.monotonic()
            up = self._backend.up is True
            states = sorted(self._gpus.values(), key=_order)
            return Snapshot(
                taken_at=self._clock.time(),
                backend=self._backend,
                saturation=self._policy.saturation,
                worker=self._worker,
                gpus=tuple(
                    state.view(now, backend_up=up, xids=self._xids.of(state.info.uuid, now))
                    for state in states
                ),
                visible=self._visible if up else None,
                expected=self._inventory.expected_count(),
                not_ready=self._not_ready(now),
                durations=self._durations(),
                errors=self._complaints.counts(),
            )

    def history(self, uuid: str, window: float) -> list[HistoryPoint] | None:
        """Return the samples of the last `window` seconds; None for an unknown GPU."""
        with self._lock:
            state = self._gpus.get(uuid)
            return None if state is None else state.history(self._clock.time() - window)

    def complete(self) -> bool:
        """Tell whether every GPU that answers has told all that it can."""
        with self._lock:
            now = self._clock.monotonic()
            return all(
                state.has_told_all() or not state.view(now, backend_up=True).up
                for state in self._gpus.values()
            )

    def close(self) -> None:
        """Write what must survive and is not written yet."""
        with self._lock:
            self._xids.save(state_file.AT_EASE_SECONDS)

    def _handlers(self) -> dict[type, Callable[..., None]]:
        return {
            BackendFrame: self._take_backend,
            DevicesFrame: self._take_devices,
            SampleFrame: self._take_sample,
            ProcessesFrame: self._take_processes,
            ErrorsFrame: self._take_errors,
            HealthFrame: self._take_health,
            XidFrame: self._xids.take,
            FaultFrame: self._take_fault,
            HeartbeatFrame: self._take_heartbeat,
            LogFrame: lambda frame: _log.log(frame.level, "%s", frame.message),
        }

    def _take_backend(self, frame: BackendFrame) -> None:
        now = self._clock.monotonic()
        if frame.up and self._backend.up is False:
            for state in self._gpus.values():
                state.await_answer(now)
        self._backend = BackendView(
            frame.backend,
            frame.up,
            frame.reason,
            frame.message,
            frame.driver_version or self._backend.driver_version,
            frame.cuda_version or self._backend.cuda_version,
        )
        if not frame.up:
            self._complaints.count(ENUMERATION, str(frame.reason))
            # Whether each card is well is not known: they are down, but without a fault.
            for info in self._inventory.missing(self._gpus):
                self._gpus[info.uuid] = GpuState(info, self._policy, self._deadlines, now)
            for state in self._gpus.values():
                state.backend_down()
            self._know_cards()
        self._complaints.say(
            "backend", f"backend {frame.backend}: {frame.message}" if frame.message else ""
        )

    def _take_devices(self, frame: DevicesFrame) -> None:
        now = self._clock.monotonic()
        self._last_devices = replace(frame, errors=())
        if not frame.opening:
            self._visible = len(frame.devices)
            self._enumeration_seconds = frame.duration_seconds
        devices = [self._inventory.complete(info) for info in frame.devices]
        for info in devices:
            state = self._gpus.get(info.uuid)
            if state is None:
                self._gpus[info.uuid] = GpuState(info, self._policy, self._deadlines, now)
            else:
                state.enumerated(info)
        try:
            self._inventory.saw(devices)
        except StorageError as error:
            self._not_stored(error)
        for word in frame.errors:
            self._complaints.count(ENUMERATION, word)
        visible = {info.uuid for info in devices}
        self._xids.told_by_driver(visible, frame.watched)
        found = f"{len(devices)} GPUs, driver {self._backend.driver_version or 'unknown'}"
        if not frame.opening and found != self._found:
            self._found = found
            _log.info("backend %s: %s", self._backend.name, found)
        self._expect_missing(frame, visible)
        self._know_cards()

    def _expect_missing(self, frame: DevicesFrame, visible: set[str]) -> None:
        """Bring down what is expected and not there; forget what is neither.

        What is missing while some are still being opened may be one of them.
        """
        missing = {info.uuid: info for info in self._inventory.missing(visible)}
        by_index = {one.index: one for one in frame.failed}
        for info in missing.values():
            known = by_index.pop(info.index, None) if info.index is not None else None
            if known is not None:
                self._missing(info, known.reason, known.message)
            elif frame.opening:
                self._await(info)
            else:
                message = "expected, but the driver does not list it"
                self._missing(info, FaultReason.LOST, message)
        for one in by_index.values():
            self._missing(DeviceInfo(one.index, f"unknown-{one.index}"), one.reason, one.message)
        keep = visible | missing.keys() | {f"unknown-{index}" for index in by_index}
        self._gpus = {uuid: state for uuid, state in self._gpus.items() if uuid in keep}

    def _await(self, info: DeviceInfo) -> GpuState:
        new = GpuState(info, self._policy, self._deadlines, self._clock.monotonic())
        return self._gpus.setdefault(info.uuid, new)

    def _missing(self, info: DeviceInfo, reason: FaultReason, message: str) -> None:
        self._await(info).vanished(reason, message)
        self._complaints.say(info.uuid, f"GPU {info.uuid}: {reason}: {message}")

    def _take_sample(self, frame: SampleFrame) -> None:
        state = self._gpus.get(frame.uuid)
        if state is not None:
            state.take_sample(frame)
            for error in frame.errors:
                self._complaints.count("sample", error)
            # One that takes too long does not answer, though its readings come.
            if not state.is_overdue(self._clock.monotonic()):
                self._complaints.say(frame.uuid, "")

    def _take_processes(self, frame: ProcessesFrame) -> None:
        state = self._gpus.get(frame.uuid)
        if state is not None:
            state.take_processes(frame)
            self._complaints.say(f"{frame.uuid} processes", "")

    def _take_errors(self, frame: ErrorsFrame) -> None:
        for error in frame.errors:
            self._complaints.count(frame.collector, error)

    def _take_health(self, frame: HealthFrame) -> None:
        state = self._gpus.get(frame.uuid)
        if state is not None:
            state.take_health(frame)
            self._complaints.say(f"{frame.uuid} health", "")
            for error in frame.errors:
                self._complaints.count("health", error)

    def _take_fault(self, frame: FaultFrame) -> None:
        self._complaints.count(frame.collector, frame.error)
        state = self._gpus.get(frame.uuid)
        if state is not None:
            state.take_fault(frame)
        # A sample that goes well says nothing of another collection.
        of_all = frame.reason is not None or frame.collector == "sample"
        subject = frame.uuid if of_all else f"{frame.uuid} {frame.collector}".strip()
        who = f"GPU {frame.uuid}" if frame.uuid else "the driver"
        message = f"{who}: {frame.collector}: {frame.error}: {frame.message}"
        self._complaints.say(subject, message.rstrip(": "))

    def _know_cards(self) -> None:
        visible = {one.uuid for one in self._last_devices.devices} if self._last_devices else set()
        self._xids.know([state.info for state in self._gpus.values()], visible)

    def _take_heartbeat(self, _: HeartbeatFrame) -> None:
        # Not with each Xid: they come in storms.
        self._xids.save()
        self._say_who_is_overdue()
        try:
            if self._last_devices is not None and self._inventory.was_reset():
                self._take_devices(self._last_devices)
        except StorageError as error:
            self._not_stored(error)

    def _say_who_is_overdue(self) -> None:
        now = self._clock.monotonic()
        overdue = [state.info for state in self._gpus.values() if state.is_overdue(now)]
        for info in overdue if self._backend.up else ():
            message = f"GPU {info.uuid}: {FaultReason.TIMEOUT}: the GPU does not answer"
            self._complaints.say(info.uuid, message)

    def _not_stored(self, error: StorageError) -> None:
        self._complaints.count("inventory", "storage")
        self._complaints.say("inventory", str(error))

    def _not_ready(self, now: float) -> str:
        if self._released:
            return ""
        if self._backend.up is None:
            return f"the {self._backend.name} backend has not been opened yet"
        if self._backend.up:
            if self._visible is None:
                return "the GPUs have not been enumerated yet"
            waiting = [s.info.uuid for s in self._gpus.values() if not s.has_answered(now)]
            if waiting:
                return f"no reading yet from {', '.join(sorted(waiting))}"
        return ""

    def _durations(self) -> dict[str, float]:
        durations: dict[str, float] = {}
        for state in self._gpus.values():
            for collector, took in state.durations().items():
                durations[collector] = max(took, durations.get(collector, 0.0))
        if self._enumeration_seconds is not None:
            durations[ENUMERATION] = self._enumeration_seconds
        return durations


def _order(state: GpuState) -> tuple[bool, int, str]:
    index = state.info.index
    return (index is None, index or 0, state.info.uuid)
