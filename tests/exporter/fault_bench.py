"""A running exporter with short deadlines over the stand-in driver, for the tests of its faults."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from exporter.config import Config, Intervals
from exporter.readings import FaultReason
from exporter.service import Service, ServiceOptions
from exporter.snapshot import GpuView
from exporter.supervision import Limits
from exporter.worker import WorkerOptions
from exporter.worker_process import WorkerProcess
from tests.exporter.nvml_calls import furnish
from tests.nvml_standin import Driver

# A word of `gpu_exporter_collect_errors_total` that only one function answers with: no real code is so high.
FIRST_CODE = 1000
# A second worker is tried again at once: faults come and go faster than in the world.
HASTY = Limits(grace=1, settle=1, handover_limit=1, calm=1)
SHORT = replace(HASTY, silence=4, stuck=3, grace=0.5, backoff=0.1, backoff_limit=0.5, handover=2)
_environment = threading.Lock()


class FaultBench:
    """One service over a driver of its own.

    Attributes:
        driver: what its worker reads.
        service: it, started.
    """

    def __init__(self, folder: Path, gpus: int, limits: Limits = HASTY) -> None:
        self.driver = Driver(folder / "driver", gpus=gpus)
        furnish(self.driver, gpus)
        config = Config(intervals=Intervals(processes=0.2, health=0.2, check=1, fault_after=1))
        options = ServiceOptions("nvml", sample_interval=0.2, storage_path=folder / "state")
        self.service = Service(config, options, limits, start_worker=self._start)

    def _start(self, options: WorkerOptions) -> WorkerProcess:
        schedule = replace(options.schedule, retry=0.1, retry_limit=0.2, opening=1.0)
        with _environment:
            before = dict(os.environ)
            os.environ.update(self.driver.env())
            try:
                return WorkerProcess(replace(options, schedule=schedule))
            finally:
                os.environ.clear()
                os.environ.update(before)

    def stop(self) -> None:
        self.driver.clear()
        self.driver.load()
        self.service.stop()

    def views(self) -> dict[int, GpuView]:
        return {view.info.index: view for view in self.service.store.snapshot().gpus}

    def timed_out(self, *indices: int) -> bool:
        views = self.views()
        return all(views[index].fault is FaultReason.TIMEOUT for index in indices)

    def well(self, *indices: int, watched: bool = True) -> bool:
        """Whether these are up with all that such a card has told since; `watched`: Xid errors too."""
        views = self.views()
        return all(
            index in views and views[index].up and _complete(views[index], watched=watched)
            for index in indices
        )

    def stale(self, indices: Iterable[int], seconds: float) -> list[int]:
        """Which of these were read, but not for so long."""
        views = self.views()
        ages = {index: views[index].age_seconds for index in indices if index in views}
        return [index for index, age in ages.items() if age is not None and age > seconds]

    def errors(self) -> dict[str, int]:
        """How often each word was counted, whatever the collector."""
        counted: dict[str, int] = {}
        for (_, word), count in self.service.store.snapshot().errors.items():
            counted[word] = counted.get(word, 0) + count
        return counted


def _complete(view: GpuView, *, watched: bool) -> bool:
    sample, health = view.sample, view.health
    if sample is None or health is None or view.processes is None:
        return False
    if watched and view.xids is None:
        return False
    told = (sample.temperature_celsius, sample.utilization_ratio, sample.memory_used_bytes)
    more = (sample.power_watts, sample.clocks_hertz, sample.fan_speed_ratios, sample.energy_joules)
    least = (health.ecc_errors, health.remapped_rows, sample.clock_events, view.info.name)
    return None not in (*told, *more, *least) and bool(view.info.name)
