"""The exporter under scrapes and faults for a long time: what it holds must not grow.

    python -m tests.exporter.soak                   # ten minutes
    python -m tests.exporter.soak --seconds 60      # in CI

A real exporter over the stand-in driver is scraped by several clients in both formats while faults come and
go in an order that the seed decides: calls hang and fail, cards get lost, vanish and come back, the driver is
unloaded, Xids come in storms, processes come and go, the worker is ended. Between the faults it is calm:
then memory, threads, descriptors and processes of the tree are counted. The first half only warms up.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

from benchmarks.exporters import OURS, ExporterError, Running
from benchmarks.figures import table
from deploy.local.ports import HOST
from tests.exporter.nvml_calls import NOT_INJECTABLE, called, furnish
from tests.nvml_standin import Driver, DriverProcess, StandinError

GPUS = 6
_CLIENTS = 3
_ACCEPT = ("", "application/openmetrics-text; version=1.0.0", "text/plain")
_MIB = 1024**2
# Of the median of the last calm moments over that of the first ones, after the warm-up.
_MOST_GROWTH = {"memory_mib": 2.0, "threads": 0.0, "descriptors": 0.0, "processes": 0.0}
_LEAST_MOMENTS = 6
_WELL_SECONDS = 60.0


@dataclass(frozen=True)
class Moment:
    """What the whole tree held while it was calm; memory as private pages and a share of the others."""

    memory_mib: float
    threads: int
    descriptors: int
    processes: int

    @classmethod
    def of(cls, root: int) -> Moment:
        tree = [psutil.Process(root)]
        tree += tree[0].children(recursive=True)
        return cls(
            sum(one.memory_full_info().pss for one in tree) / _MIB,
            sum(one.num_threads() for one in tree),
            sum(one.num_fds() for one in tree),
            len(tree),
        )


class World:
    """The driver, and what can happen to it."""

    def __init__(self, folder: Path, functions: Sequence[str], seed: int) -> None:
        self.driver = Driver(folder, gpus=GPUS)
        furnish(self.driver, GPUS)
        self._functions = functions
        self._random = random.Random(seed)
        self._events: tuple[Callable[[int], None], ...] = (
            self._hang,
            self._fail,
            self._fail_all,
            self._storm,
            self._populate,
            self._unload,
            self.driver.lose,
            self.driver.remove,
        )

    def misbehave(self, worker: int | None) -> None:
        """Let a few things happen at once, and sometimes end the worker, too."""
        for event in self._random.sample(self._events, self._random.randint(1, 3)):
            event(self._random.randrange(GPUS))
        if worker is not None and self._random.random() < 1 / 8:
            os.kill(worker, signal.SIGTERM)

    def calm(self) -> None:
        self.driver.clear()
        self.driver.load()
        furnish(self.driver, GPUS)

    def _hang(self, gpu: int) -> None:
        self.driver.hang(self._random.choice(self._functions), gpu=self._random.choice([gpu, None]))

    def _fail(self, gpu: int) -> None:
        code = self._random.choice([1, 2, 3, 6, 9, 10, 15, 16, 18, 28, 999])
        self.driver.fail(self._random.choice(self._functions), gpu=gpu, error=code)

    def _fail_all(self, gpu: int) -> None:
        self.driver.fail(gpu=gpu, error=self._random.choice([15, 16, 999]))

    def _storm(self, gpu: int) -> None:
        for _ in range(200):
            self.driver.xid(gpu, self._random.choice([13, 31, 43, 48, 79, 94, 154, 1000]))

    def _populate(self, gpu: int) -> None:
        pids = self._random.sample(range(1, 2**22), self._random.randint(0, 200))
        self.driver.set_processes(gpu, [DriverProcess(pid, _MIB) for pid in pids])

    def _unload(self, gpu: int) -> None:
        self.driver.fail("nvmlDeviceGetUtilizationRates", gpu=gpu, error=9)
        self.driver.unload()


class Clients:
    """Prometheus in a hurry, in both formats; every fourth client goes away in the middle of a request."""

    def __init__(self, port: int) -> None:
        self.scrapes = 0
        self.failures: list[str] = []
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._scrape) for _ in range(_CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _scrape(self) -> None:
        while not self._stop.wait(0.1):
            self.scrapes += 1
            try:
                if self.scrapes % 4 == 0:
                    with socket.create_connection((HOST, self._port), timeout=10) as gone:
                        gone.sendall(b"GET /metrics HTTP/1.1\r\nHo")
                else:
                    self._ask(_ACCEPT[self.scrapes % len(_ACCEPT)])
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"scrape {self.scrapes}: {type(error).__name__}: {error}")
                return

    def _ask(self, accept: str) -> None:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=10)
        try:
            connection.request("GET", "/metrics", headers={"Accept": accept})
            answer = connection.getresponse()
            page = answer.read()
        finally:
            connection.close()
        if answer.status != http.client.OK or b"gpu_exporter_build_info" not in page:
            raise http.client.HTTPException(f"status {answer.status}, {len(page)} bytes")


def soak(folder: Path, seconds: float, seed: int) -> tuple[list[Moment], Clients]:
    """Run it; returns what was held at each calm moment, oldest first."""
    functions = [one.function for one in called(folder / "pass")]
    functions = [one for one in functions if one not in NOT_INJECTABLE]
    world, moments = World(folder / "driver", functions, seed), []
    own = folder / "exporter"
    own.mkdir()
    with Running(OURS, world.driver.env(), own) as running:
        _await_well(running)
        clients = Clients(running.port)
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end and not clients.failures:
                world.misbehave(_worker(running.pid))
                time.sleep(1.5)
                world.calm()
                _await_well(running)
                moments.append(Moment.of(running.pid))
        finally:
            clients.stop()
    return moments, clients


def _worker(root: int) -> int | None:
    children = psutil.Process(root).children()
    return children[0].pid if children else None


def _await_well(running: Running) -> None:
    """Wait until every card is read, by one worker."""
    deadline, up = time.monotonic() + _WELL_SECONDS, [""]
    while time.monotonic() < deadline:
        up = [line for line in _page(running).splitlines() if line.startswith("gpu_up{")]
        tree = psutil.Process(running.pid).children(recursive=True)
        if (
            len(up) == GPUS
            and all(float(line.split(" ")[-1]) == 1 for line in up)
            and len(tree) == 1
        ):
            return
        time.sleep(0.1)
    raise ExporterError(f"not every card is back {_WELL_SECONDS:g} s after the last fault: {up}")


def _page(running: Running) -> str:
    try:
        return running.scrape().page
    except ExporterError:
        return ""


def growth(moments: Sequence[Moment]) -> dict[str, tuple[float, float]]:
    """The medians of the third and of the last quarter, by what was counted."""
    late = moments[len(moments) // 2 :]
    middle = len(late) // 2
    return {
        field.name: (
            statistics.median(getattr(one, field.name) for one in late[:middle]),
            statistics.median(getattr(one, field.name) for one in late[middle:]),
        )
        for field in fields(Moment)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 when something grew or failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.exporter.soak")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory(prefix="gpu-soak-") as folder:
            moments, clients = soak(Path(folder), options.seconds, options.seed)
    except (ExporterError, StandinError) as error:
        print(f"seed {options.seed}: {error}", file=sys.stderr)
        return 1
    print(f"{len(moments)} faults, {clients.scrapes} scrapes, seed {options.seed}")
    if clients.failures or len(moments) < _LEAST_MOMENTS:
        print(f"it did not go on: {clients.failures[:1] or 'too few faults for a judgement'}")
        return 1
    rows, grown = [], []
    for name, (before, after) in growth(moments).items():
        ok = after - before <= _MOST_GROWTH[name]
        grown += [] if ok else [name]
        rows.append(
            (
                name,
                f"{before:.1f}",
                f"{after:.1f}",
                f"{_MOST_GROWTH[name]:g}: {'met' if ok else 'MISSED'}",
            )
        )
    print(table(("held while calm", "before", "after", "most growth"), rows))
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
