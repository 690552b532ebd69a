"""What the parent knows about one GPU, from frame to frame."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeVar

from exporter.frames import FaultFrame, HealthFrame, ProcessesFrame, SampleFrame
from exporter.policy import Policy, judge
from exporter.readings import DeviceInfo, FaultReason
from exporter.saturation import UtilisationHistory
from exporter.snapshot import GpuView
from exporter.xid_ledger import XidCount

HISTORY_SECONDS = 300.0
_COLLECTIONS = {"sample", "processes", "health"}


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Ages in seconds beyond which a reading is not shown any more.

    Attributes:
        sample: of readings.
        processes: of process lists.
        health: of what is read seldom.
        fault: of the last sign of life; beyond it the GPU is down with `timeout`.
    """

    interval: float
    sample: float
    processes: float
    health: float
    fault: float

    @classmethod
    def for_intervals(
        cls, sample: float, processes: float, health: float, fault_after: float
    ) -> Deadlines:
        """Three intervals, and never so short that a busy machine alone would miss them."""
        shown = max(1.0, 3.5 * sample)
        return cls(
            interval=sample,
            sample=shown,
            processes=3.5 * processes,
            health=3.5 * health,
            fault=max(fault_after, shown),
        )


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """One sample of the last minutes; `timestamp` in seconds since the epoch."""

    timestamp: float
    temperature: float | None
    utilization: float | None
    memory_used_bytes: int | None
    power_draw_w: float | None


class GpuState:
    """One GPU: its last readings, and what is counted across them."""

    def __init__(self, info: DeviceInfo, policy: Policy, deadlines: Deadlines, now: float) -> None:
        """Begin with a GPU that was just enumerated; it has until the deadline to answer."""
        self.info = info
        self._policy = policy
        self._deadlines = deadlines
        self._thresholds = policy.for_gpu(info)
        self._utilisation = UtilisationHistory(policy.saturation, deadlines.interval)
        self._history: deque[HistoryPoint] = deque()
        self._alive_at = now
        self._sample: SampleFrame | None = None
        self._processes: ProcessesFrame | None = None
        self._health: HealthFrame | None = None
        self._told: set[str] = set()
        self._fault: FaultReason | None = None
        self._fault_message = ""
        self._returns = False

    def enumerated(self, info: DeviceInfo) -> None:
        """It is there (again), perhaps under another index. Only a reading ends a fault."""
        self.info = info
        self._thresholds = self._policy.for_gpu(info)

    def await_answer(self, now: float) -> None:
        """The backend is back: it has until the deadline to answer."""
        self._alive_at = now

    def released(self) -> None:
        """Nobody of ours may look at it: it was let go on request."""
        self._down(FaultReason.RELEASED, "let go on request")

    def taken_back(self, deadline: float) -> None:
        """It is read again: what it answers ends the release, or that it has not at `deadline`."""
        self._returns = self._fault is FaultReason.RELEASED
        self._alive_at = max(self._alive_at, deadline - self._deadlines.fault)

    def backend_down(self) -> None:
        """Nothing can be read: whether it is well is not known, and no release keeps it."""
        if self._returns:
            self._clear_fault()

    def vanished(self, reason: FaultReason, message: str) -> None:
        """It is expected, but not among those that the driver opened."""
        self._down(reason, message)

    def take_sample(self, frame: SampleFrame) -> None:
        """Take a reading; a GPU that answers has no fault."""
        if _is_older(frame, self._sample):
            return
        self._clear_fault()
        self._alive_at = frame.monotonic
        self._sample = frame
        self._told.add("sample")
        sample = frame.sample
        if frame.utilization is not None:
            self._utilisation.cover(frame.utilization, frame.monotonic)
        elif sample.utilization_ratio is not None:
            self._utilisation.add(sample.utilization_ratio, frame.monotonic)
        percent = None if sample.utilization_ratio is None else sample.utilization_ratio * 100
        self._history.append(
            HistoryPoint(
                frame.time,
                sample.temperature_celsius,
                percent,
                sample.memory_used_bytes,
                sample.power_watts,
            )
        )
        while self._history[0].timestamp < frame.time - HISTORY_SECONDS:
            self._history.popleft()

    def take_processes(self, frame: ProcessesFrame) -> None:
        """Take a process list."""
        if not _is_older(frame, self._processes):
            self._processes = frame
        self._told.add("processes")

    def take_health(self, frame: HealthFrame) -> None:
        """Take what is read seldom."""
        if not _is_older(frame, self._health):
            self._health = frame
        self._told.add("health")

    def take_fault(self, frame: FaultFrame) -> None:
        """Take a failed collection; only a fault of the GPU itself brings it down."""
        self._told.add(frame.collector)
        if frame.reason is not None:
            self._down(frame.reason, frame.message)

    def has_answered(self, now: float) -> bool:
        """Tell whether its state is known: read, at fault, or too late."""
        return self._sample is not None or self._fault is not None or self._late(now)

    def is_overdue(self, now: float) -> bool:
        """Tell whether it should have answered by `now`, and nobody has said why it has not."""
        return (self._fault is None or self._returns) and self._late(now)

    def has_told_all(self) -> bool:
        """Tell whether each of its collections was made, or failed, at least once."""
        return self._told >= _COLLECTIONS

    def durations(self) -> dict[str, float]:
        """Seconds that the last collection of each kind took."""
        frames = {"sample": self._sample, "processes": self._processes, "health": self._health}
        return {name: one.duration_seconds for name, one in frames.items() if one is not None}

    def history(self, since: float) -> list[HistoryPoint]:
        """Samples not older than `since` (epoch), oldest first."""
        return [point for point in self._history if point.timestamp >= since]

    def view(
        self, now: float, *, backend_up: bool, xids: tuple[XidCount, ...] | None = None
    ) -> GpuView:
        """Return the picture at `now` (monotonic), without anything too old."""
        fault, message = self._fault, self._fault_message
        if backend_up and self.is_overdue(now):
            fault, message = FaultReason.TIMEOUT, "the GPU does not answer"
        up = fault is None and backend_up
        frame, age = self._sample, None
        if frame is not None:
            age = max(0.0, now - frame.monotonic)
        shown = frame if up and age is not None and age <= self._deadlines.sample else None
        sample = None if shown is None else shown.sample
        processes = self._fresh_processes(now) if up else None
        health = self._fresh_health(now) if up else None
        saturated = None if sample is None else self._utilisation.saturated_seconds(now)
        return GpuView(
            info=self.info,
            up=up,
            fault=fault,
            fault_message=message if fault is not None else "",
            sample=sample,
            sampled_at=None if frame is None else frame.time,
            age_seconds=age,
            processes=None if processes is None else processes.processes,
            process_count=None if processes is None else processes.count,
            health=None if health is None else health.health,
            health_age_seconds=None if health is None else max(0.0, now - health.monotonic),
            xids=xids,
            busy_seconds=None if sample is None else self._utilisation.busy_seconds,
            saturated_seconds=saturated,
            thresholds=self._thresholds,
            verdict=judge(
                sample,
                saturated,
                fault,
                self._thresholds,
                self._policy.saturation,
                None if health is None else health.health.recovery_action,
            ),
        )

    def _fresh_processes(self, now: float) -> ProcessesFrame | None:
        frame = self._processes
        if frame is None or now - frame.monotonic > self._deadlines.processes:
            return None
        return frame

    def _fresh_health(self, now: float) -> HealthFrame | None:
        frame = self._health
        if frame is None or now - frame.monotonic > self._deadlines.health:
            return None
        return frame

    def _late(self, now: float) -> bool:
        return now - self._alive_at > self._deadlines.fault

    def _down(self, reason: FaultReason, message: str) -> None:
        self._fault, self._fault_message, self._returns = reason, message, False
        # Who used it before is not known to use it after, and a reset may have healed it.
        self._processes = self._health = None

    def _clear_fault(self) -> None:
        self._fault, self._fault_message, self._returns = None, "", False


_Read = TypeVar("_Read", SampleFrame, ProcessesFrame, HealthFrame)


def _is_older(frame: _Read, known: _Read | None) -> bool:
    """Tell whether a worker that takes over read it before what the one before it read last."""
    return known is not None and frame.monotonic < known.monotonic
