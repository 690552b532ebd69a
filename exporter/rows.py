"""What is said of the exporter and its host, as rows: metric name, further label values, value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from exporter import __version__
from exporter.host import HostReading
from exporter.snapshot import Snapshot

Row: TypeAlias = tuple[str, tuple[str, ...], float]


def exporter_rows(snapshot: Snapshot) -> Iterator[Row]:
    """Say all about the exporter itself and its way to the GPUs."""
    backend, worker = snapshot.backend, snapshot.worker
    yield "gpu_exporter_build_info", (__version__,), 1.0
    if backend.up is not None:
        yield "gpu_exporter_backend_up", (backend.name,), float(backend.up)
    if backend.reason is not None:
        yield "gpu_exporter_backend_fault", (str(backend.reason),), 1.0
    if snapshot.visible is not None:
        yield "gpu_devices_visible", (), float(snapshot.visible)
    if snapshot.expected is not None:
        yield "gpu_devices_expected", (), float(snapshot.expected)
    yield from by_label("gpu_exporter_collect_duration_seconds", snapshot.durations)
    for (collector, reason), count in snapshot.errors.items():
        yield "gpu_exporter_collect_errors_total", (collector, reason), float(count)
    yield "gpu_exporter_collect_running_seconds", (), worker.running_seconds
    yield "gpu_exporter_worker_restarts_total", (), float(worker.restarts)
    yield "gpu_exporter_workers_stuck", (), float(worker.abandoned)


def host_rows(reading: HostReading) -> Iterator[Row]:
    """Say all about the host."""
    names = (
        ("host_memory_total_bytes", "memory_total_bytes"),
        ("host_memory_available_bytes", "memory_available_bytes"),
        ("host_oom_kills_total", "oom_kills"),
    )
    yield from present(reading, names)
    for filesystem in reading.filesystems:
        labels = (filesystem.mountpoint,)
        yield "host_filesystem_size_bytes", labels, float(filesystem.size_bytes)
        yield "host_filesystem_free_bytes", labels, float(filesystem.free_bytes)


def present(values: object, names: tuple[tuple[str, str], ...]) -> Iterator[Row]:
    """Say each of these attributes that is not None; `names` are metric and attribute."""
    for metric, attribute in names:
        value = getattr(values, attribute)
        if value is not None:
            yield metric, (), float(value)


def by_label(metric: str, values: Mapping[str, float]) -> Iterator[Row]:
    """Say each value, with its key as the metric's own label."""
    for label, value in values.items():
        yield metric, (label,), float(value)
