"""A supervisor over workers that a test scripts, in a time that the test moves."""

from __future__ import annotations

import threading
import time

from exporter.release import Release
from exporter.supervision import Limits
from exporter.supervisor import Supervisor
from tests.exporter.fakes import FakeClock

LIMITS = Limits(silence=10, stuck=30, grace=5, abandoned=1, backoff=1, backoff_limit=8, steady=60)


class FakeWorker:
    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.pid = 1
        self.readable = True
        self.frames: list = []
        self.code: int | None = None
        self.asked = False
        self.orders: list[str] = []
        self.obeys = True

    def read(self, timeout: float) -> list:
        self.clock.now += timeout
        frames, self.frames = self.frames, []
        return frames

    def exit_code(self) -> int | None:
        return self.code

    def ask_to_end(self) -> None:
        self.asked = True
        if self.obeys:
            self.code = 0

    def let_go(self) -> None:
        self.orders.append("let go")
        if self.obeys:
            self.code = 0

    def keep(self) -> None:
        self.orders.append("keep")

    def heard_xid(self, uuid: str) -> None:
        self.orders.append(f"xid {uuid}")

    def wait(self, timeout: float) -> int | None:
        if self.code is None:
            self.clock.now += timeout
        return self.code

    def close(self) -> None:
        self.readable = False

    def forget(self) -> None:
        self.close()


class Sink:
    def __init__(self) -> None:
        self.frames: list = []
        self.worker = None
        self.released: list[bool] = []
        self.errors: list[tuple[str, str]] = []
        self.logged: set[str] = set()

    def apply(self, frame) -> None:
        self.frames.append(frame)

    def set_worker(self, worker) -> None:
        self.worker = worker

    def set_released(self, *, released: bool) -> None:
        self.released.append(released)

    def count_error(self, collector: str, reason: str) -> None:
        self.errors.append((collector, reason))

    def take_logged(self) -> set[str]:
        logged, self.logged = self.logged, set()
        return logged


class Stage:
    def __init__(self, release: Release | None = None, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.sink = Sink()
        self.workers: list[FakeWorker] = []
        self.release = release or Release(self.clock, LIMITS.release)
        self.supervisor = Supervisor(self.start, self.sink, LIMITS, self.clock, self.release)

    def start(self) -> FakeWorker:
        self.workers.append(FakeWorker(self.clock))
        return self.workers[-1]

    def run(self, seconds: float, *frames, to: FakeWorker | None = None) -> None:
        """Let so many seconds pass, in each round of which a worker, the last one, tells `frames`."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            if frames:
                (to or self.workers[-1]).frames.extend(frames)
            self.supervisor.step()

    def ask_for_release(self) -> None:
        """Have somebody ask for the driver, who waits for an answer."""
        asking = threading.Thread(target=self.release.ask, args=(60,), daemon=True)
        asking.start()
        while self.release.may_start():
            time.sleep(0.01)
