"""What every Prometheus client says of its own process, under the names that all give it."""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from exporter.catalogue import Kind, Metric
from exporter.rows import Row


def _metric(name: str, text: str, *labels: str) -> Metric:
    kind = Kind.COUNTER if name.endswith("_total") else Kind.GAUGE
    return Metric(name, kind, text, "", labels, per_gpu=False)


_ALL = (
    _metric("process_virtual_memory_bytes", "Virtual memory size in bytes."),
    _metric("process_resident_memory_bytes", "Resident memory size in bytes."),
    _metric("process_start_time_seconds", "Start time of the process since unix epoch in seconds."),
    _metric("process_cpu_seconds_total", "Total user and system CPU time spent in seconds."),
    _metric("process_open_fds", "Number of open file descriptors."),
    _metric("process_max_fds", "Maximum number of open file descriptors."),
    _metric(
        "python_info",
        "Python platform information",
        *("version", "implementation", "major", "minor", "patchlevel"),
    ),
    _metric("python_gc_objects_collected_total", "Objects collected during gc", "generation"),
    _metric(
        "python_gc_objects_uncollectable_total",
        "Uncollectable objects found during GC",
        "generation",
    ),
    _metric(
        "python_gc_collections_total",
        "Number of times this generation was collected",
        "generation",
    ),
)
METRICS = {metric.name: metric for metric in _ALL}
"""By name; they are not of the catalogue, because they are not of this program alone."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = resource.getpagesize()
_GC_KEYS = (
    ("python_gc_objects_collected_total", "collected"),
    ("python_gc_objects_uncollectable_total", "uncollectable"),
    ("python_gc_collections_total", "collections"),
)


class OwnProcess:
    """Reads this process."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        """Read in `proc`, which is this process's own: it is in no other process table."""
        self._self = proc / "self"
        self._boot = _boot_time(proc / "stat")

    def rows(self) -> Iterator[Row]:
        """Say all; what cannot be read is left out."""
        yield from self._use()
        yield from self._descriptors()
        yield "python_info", _python(), 1.0
        for generation, counts in enumerate(gc.get_stats()):
            for name, key in _GC_KEYS:
                yield name, (str(generation),), float(counts[key])

    def _use(self) -> Iterator[Row]:
        try:
            # The name of a process, in parentheses, may hold anything.
            parts = (self._self / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return
        yield "process_virtual_memory_bytes", (), float(parts[20])
        yield "process_resident_memory_bytes", (), float(parts[21]) * _PAGE_BYTES
        if self._boot is not None:
            yield "process_start_time_seconds", (), self._boot + float(parts[19]) / _TICKS
        yield "process_cpu_seconds_total", (), (int(parts[11]) + int(parts[12])) / _TICKS

    def _descriptors(self) -> Iterator[Row]:
        try:
            yield "process_open_fds", (), float(sum(1 for _ in (self._self / "fd").iterdir()))
        except OSError:
            return
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if most != resource.RLIM_INFINITY:
            yield "process_max_fds", (), float(most)


def _python() -> tuple[str, ...]:
    name = {"cpython": "CPython"}.get(sys.implementation.name, sys.implementation.name)
    version = sys.version.split(maxsplit=1)[0]
    return (version, name, *(str(part) for part in sys.version_info[:3]))


def _boot_time(path: Path) -> float | None:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return None
    return next((float(one.split()[1]) for one in lines if one.startswith(b"btime ")), None)
