"""Which NVML functions the exporter calls, and from where: seen in one whole pass, never written down.

`python -m tests.exporter.nvml_calls` makes the pass in a process that has the stand-in's variables, with the
collector of the worker, and prints what it saw. The library's symbols are what counts: one function of the
binding may call another one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pynvml

from tests.nvml_standin import Driver, DriverProcess

# The stand-in answers these without a look at its faults.
NOT_INJECTABLE = frozenset({"nvmlErrorString"})
# Without these the driver is not open: while one hangs nobody can be read.
_BLINDING = frozenset({"nvmlInit", "nvmlDeviceGetCount", "nvmlShutdown"})
_CLOSING = frozenset({"nvmlShutdown"})
# On a busy machine the set may come late: a card is registered when it is read already, and only once.
_ONCE = frozenset({"nvmlDeviceGetSupportedEventTypes", "nvmlDeviceRegisterEvents"})
_WAITING = frozenset({"nvmlEventSetWait"})
# Not supported, not in the library, another version of its arguments, deprecated.
_NEVER_AGAIN = frozenset({3, 13, 25, 26})
# What a driver must lack so that a field does not hide the call of its own: remapped rows, energy, links.
_LACKING_FIELDS = (142, 143, 144, 145, 83, 165)
SUMMED_ENERGY = 1
"""The card that has no counter of its energy, so that its power is summed up; where there are several."""


@dataclass(frozen=True)
class Called:
    """One function of the library.

    Attributes:
        function: its name as the stand-in's faults have it: without a version.
        device: whether it is asked about one card.
        threads: the kinds of threads that call it: collector, driver, opening, gpu, events.
        known: the driver has it; what it has not is asked once, until the driver is opened again.
    """

    function: str
    device: bool
    threads: frozenset[str]
    known: bool

    @property
    def of_card(self) -> bool:
        """Read again and again by a card's own thread; the rest is called when the driver is opened."""
        return "gpu" in self.threads and self.known and self.function not in _ONCE

    @property
    def opens(self) -> bool:
        """Called when the driver is opened, closed, or soon after."""
        if self.threads & {"collector", "driver", "opening"}:
            return True
        return not self.of_card and not self.waits

    @property
    def waits(self) -> bool:
        """It takes its time when all is well."""
        return self.function in _WAITING

    @property
    def of_events(self) -> bool:
        """Without it nobody tells of Xid errors."""
        return self.function.startswith("nvmlEventSet")

    @property
    def opens_driver(self) -> bool:
        """Without it there is no driver to read a card by."""
        return self.blinds and self.function not in _CLOSING

    @property
    def blinds(self) -> bool:
        """Without it no card can be read."""
        return self.function in _BLINDING


def furnish(driver: Driver, gpus: int) -> None:
    """Give the driver and its cards what makes the exporter call everything that it can."""
    driver.lack_fields(*_LACKING_FIELDS)
    for gpu in range(gpus):
        driver.set(gpu, fan=40, pcie_replays=0, sample_period_ms=100, mig_current=1)
        driver.set_rows(gpu, "nvlink", (0, 1, 0, 0, 0))
        driver.set_rows(gpu, "mig", (0, 1, 0, 5 * 2**30, 2**30, 1))
        driver.set_processes(gpu, [DriverProcess(os.getpid(), 2**30, sm_utilization=5)])
    if gpus > SUMMED_ENERGY:
        driver.set(SUMMED_ENERGY, energy_mj=None)


def called(folder: Path) -> tuple[Called, ...]:
    """Every function that one pass calls, by name."""
    driver = Driver(folder, gpus=1)
    furnish(driver, 1)
    done = subprocess.run(
        [sys.executable, "-m", "tests.exporter.nvml_calls"],
        env=os.environ | driver.env(),
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(
        Called(one["function"], one["device"], frozenset(one["threads"]), one["known"])
        for one in json.loads(done.stdout)
    )


class Recorder:
    """Stands between the binding and the library."""

    def __init__(self) -> None:
        self.waited = threading.Event()
        self._seen: dict[str, _Seen] = {}
        self._resolve = pynvml._nvmlGetFunctionPointer
        pynvml._nvmlGetFunctionPointer = self._recording

    def report(self) -> list[dict[str, object]]:
        return [
            {"function": name, **asdict(one), "threads": sorted(one.threads)}
            for name, one in sorted(self._seen.items())
        ]

    def _recording(self, symbol: str) -> Callable[..., Any]:
        function = self._resolve(symbol)
        name = re.sub(r"(WithFlags|_v\d+)$", "", symbol)

        def call(*arguments: Any) -> Any:
            seen = self._seen.setdefault(name, _Seen())
            seen.threads.add(re.sub("-.*", "", threading.current_thread().name))
            # A card that is opened by its index is asked about, too.
            handle = bool(arguments) and isinstance(arguments[0], pynvml.c_nvmlDevice_t)
            seen.device |= handle or name.startswith("nvmlDeviceGetHandleBy")
            if name == "nvmlEventSetWait":
                self.waited.set()
            answer = function(*arguments)
            seen.known |= answer not in _NEVER_AGAIN
            return answer

        return call


@dataclass
class _Seen:
    device: bool = False
    known: bool = False
    threads: set[str] = field(default_factory=set)


def _pass() -> list[dict[str, object]]:
    from exporter.backends import registry
    from exporter.backends.base import BackendOptions
    from exporter.clock import SystemClock
    from exporter.device_sampler import Schedule
    from exporter.frames import FaultFrame, Frame, HealthFrame, ProcessesFrame
    from exporter.sampling import Collector

    recorder = Recorder()
    # What the first look leaves out, as rates need two, is in the second.
    awaited: dict[type[Frame], list[threading.Event]] = {
        kind: [threading.Event(), threading.Event()] for kind in (ProcessesFrame, HealthFrame)
    }

    def emit(frame: Frame) -> None:
        assert not isinstance(frame, FaultFrame), frame
        looks = awaited.get(type(frame), [])
        for look in [look for look in looks if not look.is_set()][:1]:
            look.set()

    schedule = Schedule(sample=0.05, processes=0.05, health=0.05)
    backend = registry.create("nvml", BackendOptions())
    collector = Collector(backend, schedule, emit, SystemClock())
    collector.start()
    for look in (recorder.waited, *(second for _, second in awaited.values())):
        assert look.wait(20), "the pass is not complete"
    collector.request_stop()
    assert collector.join(20)
    return recorder.report()


if __name__ == "__main__":
    json.dump(_pass(), sys.stdout)
