"""Keeps one worker running and passes its frames to the store."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection
from typing import Protocol

from exporter.clock import Clock
from exporter.errors import FrameError
from exporter.frames import DevicesFrame, Frame, HeartbeatFrame
from exporter.release import Move, Release
from exporter.snapshot import WorkerView
from exporter.supervision import Limits, Situation, Step, decide, next_pause

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.25
_ENUMERATION = "enumeration"


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


class FrameSink(Protocol):
    """Where frames go: the store."""

    def apply(self, frame: Frame) -> None:
        """Take one frame."""
        ...

    def set_worker(self, worker: WorkerView) -> None:
        """Take what is known about the processes."""
        ...

    def set_released(self, *, released: bool) -> None:
        """Take that the driver was let go on request, or is taken back."""
        ...

    def count_error(self, collector: str, reason: str) -> None:
        """Count a failure."""
        ...

    def take_logged(self) -> Collection[str]:
        """Return the uuids of the GPUs that the kernel log told of since the last call."""
        ...


class Supervisor:
    """One thread that reads the worker's frames and replaces it when it does not work."""

    def __init__(
        self,
        start: Callable[[], Worker],
        sink: FrameSink,
        limits: Limits,
        clock: Clock,
        release: Release,
    ) -> None:
        self._start_worker = start
        self._sink = sink
        self._limits = limits
        self._clock = clock
        self._release = release
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._worker: Worker | None = None
        self._abandoned: list[Worker] = []
        self._started_at = self._heard_at = clock.monotonic()
        self._asked_at: float | None = None
        self._start_at = 0.0
        self._pause: float | None = None
        self._starts = 0
        self._devices: frozenset[str] = frozenset()
        self._running: dict[str, float] = {}
        self._told_at, self._let_go_at = 0.0, math.inf

    def start(self) -> None:
        """Start the worker and begin to read it."""
        if self._release.grant() is not None:
            self._sink.set_released(released=True)
        self._thread.start()

    def stop(self, grace: float = 3.0) -> None:
        """Ask the worker to end and wait for it; one stuck in the driver is left alone."""
        self._stop.set()
        self._release.close()
        if self._thread.ident is not None:
            self._thread.join()
        for worker in filter(None, [self._worker, *self._abandoned]):
            worker.ask_to_end()
            worker.close()
            if worker.wait(grace) is None:
                _log.warning(
                    "worker %d is stuck in a driver call and is left to end by itself", worker.pid
                )
                worker.forget()

    def step(self) -> None:
        """Do one round: read what is there, then do what is due."""
        self._read()
        self._abandoned = [one for one in self._abandoned if one.exit_code() is None]
        match decide(self._situation(), self._limits):
            case Step.START:
                self._start()
            case Step.BURY:
                self._bury()
            case Step.ASK_TO_END:
                self._ask_to_end()
            case Step.ABANDON:
                self._abandon()
            case Step.NOTHING:
                pass
        self._follow_release()
        self._pass_on_xids()
        self._report()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.step()
            except Exception:  # noqa: BLE001  without this thread nothing is ever read again
                _log.exception("a round of supervision failed")
                self._sink.count_error("supervisor", "bug")
                self._clock.wait(self._stop, _TICK_SECONDS)

    def _read(self) -> None:
        if self._worker is None or not self._worker.readable:
            self._clock.wait(self._stop, _TICK_SECONDS)
            return
        for frame in self._worker.read(_TICK_SECONDS):
            self._heard_at = self._clock.monotonic()
            if isinstance(frame, FrameError):
                self._sink.count_error("worker", "bad_frame")
                _log.warning("worker: %s", frame)
                continue
            if isinstance(frame, HeartbeatFrame):
                self._running, self._told_at = dict(frame.running), frame.monotonic
            elif isinstance(frame, DevicesFrame):
                self._devices = frozenset(info.uuid for info in frame.devices)
            self._sink.apply(frame)

    def _situation(self) -> Situation:
        return Situation(
            now=self._clock.monotonic(),
            present=self._worker is not None,
            exited=self._worker is not None and self._worker.exit_code() is not None,
            heard_at=self._heard_at,
            asked_at=self._asked_at,
            all_stuck_since=self._all_stuck_since(),
            start_at=self._start_at,
            abandoned=len(self._abandoned),
            may_start=self._release.may_start(),
        )

    def _all_stuck_since(self) -> float | None:
        if _ENUMERATION in self._running:
            return self._running[_ENUMERATION]
        if self._devices and self._devices <= self._running.keys():
            return max(self._running.values())
        return None

    def _start(self) -> None:
        now = self._clock.monotonic()
        self._started_at = self._heard_at = now
        self._asked_at, self._running, self._devices = None, {}, frozenset()
        try:
            self._worker = self._start_worker()
        except OSError as error:
            _log.error("cannot start the worker: %s", error)
            self._sink.count_error("worker", "start")
            self._schedule_start(now)
            return
        self._starts += 1

    def _bury(self) -> None:
        worker = self._worker
        if worker is None:
            return
        while worker.readable and (frames := worker.read(0)):
            for frame in frames:
                if not isinstance(frame, FrameError):
                    self._sink.apply(frame)
        worker.close()
        if self._release.may_start():
            _log.warning("worker %d ended with code %s", worker.pid, worker.exit_code())
            self._sink.count_error("worker", "exited")
        self._gone()

    def _ask_to_end(self) -> None:
        if self._worker is not None:
            _log.warning("worker %d does not work; asking it to end", self._worker.pid)
            self._worker.ask_to_end()
        self._asked_at = self._clock.monotonic()

    def _abandon(self) -> None:
        if self._worker is not None:
            _log.error(
                "worker %d is stuck in a driver call; it is left alone, never killed there",
                self._worker.pid,
            )
            self._worker.close()
            self._abandoned.append(self._worker)
        self._sink.count_error("worker", "stuck")
        self._gone()

    def _gone(self) -> None:
        now = self._clock.monotonic()
        self._worker, self._running = None, {}
        self._schedule_start(now)

    def _schedule_start(self, now: float) -> None:
        self._pause = next_pause(self._pause, now - self._started_at, self._limits)
        self._start_at = now + self._pause

    def _follow_release(self) -> None:
        held = self._worker is not None or bool(self._abandoned)
        match self._release.next_move(held=held, stuck=self._why_stuck()):
            case Move.LET_GO if self._worker is not None:
                self._let_go_at = self._clock.monotonic()
                self._worker.let_go()
            case Move.KEEP:
                self._let_go_at = math.inf
                if self._worker is not None:
                    self._worker.keep()
            case Move.RELEASED:
                self._let_go_at = math.inf
                self._sink.set_released(released=True)
            case Move.TAKE_BACK:
                self._sink.set_released(released=False)
                self._start_at, self._pause = self._clock.monotonic(), None
            case _:
                pass

    def _why_stuck(self) -> str:
        if self._abandoned:
            return f"worker {self._abandoned[0].pid} is stuck in a driver call"
        if self._told_at < self._let_go_at:
            # What it told before may have come back since.
            return ""
        now = self._clock.monotonic()
        for what, since in self._running.items():
            if what != _ENUMERATION and now - since >= self._limits.stuck_call:
                return f"a driver call about {what} has not come back for {now - since:.0f} s"
        return ""

    def _pass_on_xids(self) -> None:
        # Those that the driver tells of itself the worker knows before we do.
        for uuid in self._sink.take_logged():
            if self._worker is not None:
                self._worker.heard_xid(uuid)

    def _report(self) -> None:
        now = self._clock.monotonic()
        longest = max((now - since for since in self._running.values()), default=0.0)
        restarts = max(0, self._starts - 1)
        self._sink.set_worker(WorkerView(max(0.0, longest), restarts, len(self._abandoned)))
