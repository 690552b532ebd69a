"""Who uses one GPU: pid, memory and utilisation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from exporter.backends import _nvml_errors as codes
from exporter.backends._nvml_reader import Call, Reader
from exporter.backends.base import ProcessesResult
from exporter.errors import ReadingError
from exporter.readings import ProcessUse

CALLS: Mapping[str, tuple[Call, ...]] = MappingProxyType(
    {
        "compute_processes": (
            lambda n, h: n.nvmlDeviceGetComputeRunningProcesses_v3(h),
            lambda n, h: n.nvmlDeviceGetComputeRunningProcesses_v2(h),
        ),
        "graphics_processes": (
            lambda n, h: n.nvmlDeviceGetGraphicsRunningProcesses_v3(h),
            lambda n, h: n.nvmlDeviceGetGraphicsRunningProcesses_v2(h),
        ),
    }
)
# What stays without news for so long is asked for as a whole: the driver's clock may have been set back.
_LOOK_SECONDS = 60.0
# With 0 the binding says that the library had nothing to make room for.
_NOTHING_NEW = codes.EMPTY | {0, codes.INSUFFICIENT_SIZE}


class ProcessSamples:
    """The driver's samples of utilisation by process; it outlives the opened device, as they do.

    The driver has one sample of each process, of when it last computed: one that idles or has ended
    is still told of. So only what is newer than the last read counts.
    """

    def __init__(self) -> None:
        self._last = 0
        self._heard_at = float("-inf")

    def read(self, reader: Reader, pids: Collection[int], now: float) -> dict[int, float]:
        """Return utilisation as a ratio by pid, of those of `pids` that computed since the last read.

        The first read, at `now` (monotonic), only finds out where the driver's clock stands; so does
        the first one after a failure.

        Raises:
            DeviceFault: the GPU is lost or wants a reset.
            BackendError: the driver is gone for all.
        """
        first, failures = self._last == 0, len(reader.failures)
        since = 0 if now - self._heard_at > _LOOK_SECONDS else self._last
        samples = reader.ask("process_utilization", _samples(since)) or ()
        if len(reader.failures) > failures:
            # What the next read found would be as old as the last one that went well.
            self._last = 0
            return {}
        found = {
            int(one.pid): one.smUtil / 100
            for one in sorted(samples, key=lambda one: int(one.timeStamp))
            if one.timeStamp > self._last and one.pid in pids and 0 <= one.smUtil <= 100
        }
        newest = max((int(one.timeStamp) for one in samples), default=0)
        if newest > self._last or since == 0:
            self._last, self._heard_at = newest, now
        return {} if first else found


def _samples(since: int) -> Call:
    def call(nvml: Any, handle: Any) -> Any:
        try:
            return nvml.nvmlDeviceGetProcessUtilization(handle, since)
        except nvml.NVMLError as error:
            if error.value in _NOTHING_NEW:
                return ()
            raise

    return call


def read_processes(reader: Reader, samples: ProcessSamples, now: float) -> ProcessesResult:
    """Read each process once: one that both computes and draws is in both lists.

    Raises:
        DeviceFault, BackendError: as `ProcessSamples.read`.
        ReadingError: only the lists cannot be read.
    """
    lists = [reader.read("compute_processes"), reader.read("graphics_processes")]
    if reader.failures:
        # Half of a list would be read as the whole.
        raise ReadingError(reader.words()[0])
    if lists == [None, None]:
        return ProcessesResult(None)
    memory = _memory([_by_place(each) for each in lists if each is not None])
    utilization = samples.read(reader, memory.keys(), now)
    found = (
        ProcessUse(pid=pid, memory_used_bytes=used, utilization_ratio=utilization.get(pid))
        for pid, used in memory.items()
    )
    return ProcessesResult(tuple(found), reader.words())


def _by_place(processes: Iterable[Any]) -> dict[tuple[int, object], int | None]:
    """Return memory by pid and GPU instance: on a divided card a process may be in several."""
    return {
        (one.pid, getattr(one, "gpuInstanceId", None)): (
            None if one.usedGpuMemory is None else int(one.usedGpuMemory)
        )
        for one in processes
    }


def _memory(lists: Iterable[Mapping[tuple[int, object], int | None]]) -> dict[int, int | None]:
    """Return memory by pid: what is in several lists once, what is in several places in all."""
    places: dict[tuple[int, object], int | None] = {}
    for each in lists:
        for place, used in each.items():
            known = places.get(place)
            places[place] = known if used is None else max(used, known or 0)
    memory: dict[int, int | None] = {}
    for (pid, _), used in places.items():
        known = memory.get(pid)
        memory[pid] = known if used is None else used + (known or 0)
    return memory
