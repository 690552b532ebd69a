"""Keeps one worker running and passes its frames to the store."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from exporter.clock import Clock
from exporter.errors import FrameError
from exporter.frames import ENUMERATION, Frame
from exporter.handover import Handover
from exporter.heard_worker import HeardWorker, Worker
from exporter.release import Move, Release
from exporter.snapshot import WorkerView
from exporter.supervision import Limits, Situation, Step, decide, next_pause

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.25


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
        self._worker: HeardWorker | None = None
        self._handover = Handover(self._start_one, sink, limits, clock)
        # Those that were asked to end and have been replaced already, and those stuck in the driver.
        self._leaving: list[HeardWorker] = []
        self._abandoned: list[Worker] = []
        self._started_at = clock.monotonic()
        self._start_at = 0.0
        self._pause: float | None = None
        self._replacements = -1
        self._let_go_at = math.inf

    def start(self) -> None:
        """Start the worker and begin to read it."""
        if self._release.grant() is not None:
            self._sink.set_released(released=True)
        self._thread.start()

    def stop(self, grace: float = 3.0) -> None:
        """Ask all workers to end and wait for them; who is stuck in the driver is left alone."""
        self._stop.set()
        self._release.close()
        if self._thread.ident is not None:
            self._thread.join()
        heard = filter(None, [self._worker, self._handover.worker, *self._leaving])
        workers = [*(one.worker for one in heard), *self._abandoned]
        for worker in workers:
            worker.ask_to_end()
            worker.close()
        deadline = self._clock.monotonic() + grace
        for worker in workers:
            if worker.wait(max(0.0, deadline - self._clock.monotonic())) is None:
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
                self._give_up()
            case Step.NOTHING:
                pass
        self._hand_over()
        self._see_off()
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
        if self._worker is None or not self._worker.worker.readable:
            self._clock.wait(self._stop, _TICK_SECONDS)
            return
        self._take(self._worker.read(_TICK_SECONDS))

    def _take(self, frames: Iterable[Frame | FrameError]) -> None:
        for frame in frames:
            if isinstance(frame, FrameError):
                self._sink.count_error("worker", "bad_frame")
            else:
                self._sink.apply(frame)

    def _situation(self) -> Situation:
        worker = self._worker
        now = self._clock.monotonic()
        return Situation(
            now=now,
            present=worker is not None,
            exited=worker is not None and worker.worker.exit_code() is not None,
            heard_at=now if worker is None else worker.heard_at,
            asked_at=None if worker is None else worker.asked_at,
            all_stuck_since=None if worker is None else worker.all_stuck_since(),
            start_at=self._start_at,
            abandoned=len(self._abandoned),
            may_start=self._release.may_start(),
        )

    def _start_one(self) -> HeardWorker | None:
        try:
            return HeardWorker(self._start_worker(), self._clock)
        except OSError as error:
            _log.error("cannot start a worker: %s", error)
            self._sink.count_error("worker", "start")
            return None

    def _start(self) -> None:
        self._started_at = self._clock.monotonic()
        self._worker = self._start_one()
        if self._worker is None:
            self._schedule_start()
        else:
            self._replacements += 1

    def _bury(self) -> None:
        if self._worker is None:
            return
        worker = self._worker.worker
        self._take(self._worker.rest())
        worker.close()
        if self._release.may_start():
            _log.warning("worker %d ended with code %s", worker.pid, worker.exit_code())
            self._sink.count_error("worker", "exited")
        self._gone()

    def _ask_to_end(self) -> None:
        if self._worker is not None:
            _log.warning("worker %d does not work; asking it to end", self._worker.pid)
            self._worker.ask_to_end()

    def _give_up(self) -> None:
        if self._worker is not None:
            self._abandon(self._worker)
        self._gone()

    def _abandon(self, one: HeardWorker) -> None:
        _log.error(
            "worker %d is stuck in a driver call; it is left alone, never killed there",
            one.pid,
        )
        one.worker.close()
        self._abandoned.append(one.worker)
        self._sink.count_error("worker", "stuck")

    def _gone(self) -> None:
        self._worker = None
        self._schedule_start()

    def _schedule_start(self) -> None:
        now = self._clock.monotonic()
        self._pause = next_pause(self._pause, now - self._started_at, self._limits)
        self._start_at = now + self._pause

    def _hand_over(self) -> None:
        may_hold = self._release.may_start()
        if not may_hold:
            # Also where the first one has let go already: the second would hold the driver on.
            self._handover.give_up()
        may_start = may_hold and not self._abandoned and not self._leaving
        new = self._handover.step(self._worker, may_start=may_start)
        if self._handover.given_up is not None:
            self._leave(self._handover.given_up)
            self._handover.given_up = None
        if new is None:
            return
        before, self._worker = self._worker, new.heard
        self._started_at = new.heard.started_at
        if before is not None:
            # What it still has to tell comes first: what the new one has found is newer.
            self._take(before.rest())
            self._leave(before)
            # Both hear of the same Xids: one that is read of the first only would count twice.
            new.read(self._sink.apply, self._sink.count_error)
        self._take(new.take_over(Counter() if before is None else before.xids))
        _log.info("worker %d, started to open the driver again, has taken over", new.heard.pid)

    def _leave(self, one: HeardWorker) -> None:
        if one.asked_at is None:
            one.ask_to_end()
        one.worker.close()
        self._leaving.append(one)

    def _see_off(self) -> None:
        """Abandon those that do not end in time."""
        now = self._clock.monotonic()
        staying = []
        for one in self._leaving:
            if one.worker.exit_code() is not None:
                continue
            if one.asked_at is not None and now - one.asked_at >= self._limits.grace:
                self._abandon(one)
            else:
                staying.append(one)
        self._leaving = staying

    def _follow_release(self) -> None:
        others = bool(self._abandoned or self._leaving or self._handover.worker)
        held = self._worker is not None or others
        match self._release.next_move(held=held, stuck=self._why_stuck()):
            case Move.LET_GO if held:
                self._let_go_at = self._clock.monotonic()
                if self._worker is not None:
                    self._worker.worker.let_go()
            case Move.KEEP:
                self._let_go_at = math.inf
                if self._worker is not None:
                    self._worker.worker.keep()
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
        worker = self._worker
        if worker is None or worker.told_at < self._let_go_at:
            # What it told before may have come back since.
            return ""
        now = self._clock.monotonic()
        for what, since in worker.running.items():
            if what != ENUMERATION and now - since >= self._limits.stuck_call:
                return f"a driver call about {what} has not come back for {now - since:.0f} s"
        return ""

    def _pass_on_xids(self) -> None:
        # Those that the driver tells of itself the worker knows before we do.
        for uuid in self._sink.take_logged():
            for one in filter(None, (self._worker, self._handover.worker)):
                one.worker.heard_xid(uuid)

    def _report(self) -> None:
        # What one that is on its way out told last may have come back since.
        heard = filter(None, [self._worker, self._handover.worker])
        longest = max((one.longest_call() for one in heard), default=0.0)
        restarts = max(0, self._replacements)
        self._sink.set_worker(WorkerView(max(0.0, longest), restarts, len(self._abandoned)))
