"""A worker and what it has told of itself: the supervisor's picture of one process."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

from exporter.clock import Clock
from exporter.errors import FrameError
from exporter.frames import (
    ENUMERATION,
    BackendFrame,
    DevicesFrame,
    FaultFrame,
    Frame,
    HeartbeatFrame,
    SampleFrame,
    XidFrame,
)

_log = logging.getLogger(__name__)


class Worker(Protocol):
    """What the supervisor needs of a worker process."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    @property
    def readable(self) -> bool:
        """False once it has closed its end of the pipe."""
        ...

    def read(self, timeout: float) -> list[Frame | FrameError]:
        """Wait for frames."""
        ...

    def exit_code(self) -> int | None:
        """Return the exit code, None while it runs."""
        ...

    def ask_to_end(self) -> None:
        """Ask it to end; it may take its time."""
        ...

    def let_go(self) -> None:
        """Ask it to let go of the driver and then to end."""
        ...

    def keep(self) -> None:
        """Take that back."""
        ...

    def heard_xid(self, uuid: str) -> None:
        """Tell it that a GPU had an Xid error."""
        ...

    def wait(self, timeout: float) -> int | None:
        """Wait for its end."""
        ...

    def close(self) -> None:
        """Stop reading."""
        ...

    def forget(self) -> None:
        """Leave it alone for good."""
        ...


class HeardWorker:
    """One worker, from its start on. All times are monotonic seconds.

    Attributes:
        worker: the process.
        heard_at: when it last sent anything; its start when it has not yet.
        told_at: the moment of its last heartbeat, by itself.
        asked_at: when it was asked to end, None when it was not.
        running: since when each of its driver calls has been going on.
        wants_since: since when it wants a successor, None when it does not: it reads some GPUs, and cannot
            open the driver again without blinding these.
        xids: how often it told of which Xid of which GPU.
    """

    def __init__(self, worker: Worker, clock: Clock) -> None:
        self.worker = worker
        self.started_at = self.heard_at = clock.monotonic()
        self.told_at = 0.0
        self.asked_at: float | None = None
        self.running: dict[str, float] = {}
        self.wants_since: float | None = None
        self.xids: Counter[tuple[str, int]] = Counter()
        self._clock = clock
        self._devices: frozenset[str] = frozenset()
        # Whose last sample was a reading.
        self._well: set[str] = set()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.worker.pid

    def read(self, timeout: float) -> list[Frame | FrameError]:
        """Wait at most so long for frames, and take note of each."""
        frames = self.worker.read(timeout)
        if frames:
            self.heard_at = self._clock.monotonic()
        for frame in frames:
            if isinstance(frame, FrameError):
                _log.warning("worker %d: %s", self.pid, frame)
            else:
                self._note(frame)
        return frames

    def rest(self) -> Iterator[Frame | FrameError]:
        """Yield what it sent and nobody has read yet."""
        while self.worker.readable and (frames := self.read(0)):
            yield from frames

    def ask_to_end(self) -> None:
        """Ask it to end, and note when."""
        self.worker.ask_to_end()
        self.asked_at = self._clock.monotonic()

    def all_stuck_since(self) -> float | None:
        """Since when no call of it has come back; None when one has."""
        if ENUMERATION in self.running:
            return self.running[ENUMERATION]
        if self._devices and self._devices <= self.running.keys():
            return max(self.running.values())
        return None

    def reads(self, patience: float) -> set[str]:
        """Return which GPUs (uuids) it reads now: none that it has been waiting for so many seconds.

        What tells nothing itself for so long reads none.
        """
        now = self._clock.monotonic()
        if now - self.heard_at >= patience:
            return set()
        return {uuid for uuid in self._well if now - self.running.get(uuid, now) < patience}

    def longest_call(self) -> float:
        """Seconds that its longest driver call has been going on."""
        now = self._clock.monotonic()
        return max((now - since for since in self.running.values()), default=0.0)

    def _note(self, frame: Frame) -> None:
        match frame:
            case HeartbeatFrame():
                self.running, self.told_at = dict(frame.running), frame.monotonic
                if not frame.wants_successor:
                    self.wants_since = None
                elif self.wants_since is None:
                    self.wants_since = self.heard_at
            case BackendFrame() if not frame.up:
                self._well.clear()
            case DevicesFrame():
                self._devices = frozenset(info.uuid for info in frame.devices)
                self._well &= self._devices
            case SampleFrame():
                self._well.add(frame.uuid)
            case FaultFrame() if frame.reason is not None:
                self._well.discard(frame.uuid)
            case XidFrame():
                self.xids[frame.uuid, frame.xid] += 1
            case _:
                pass
