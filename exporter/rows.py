"""What a snapshot says, as rows: metric name, further label values, value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

from exporter import __version__
from exporter.host import HostReading
from exporter.readings import CLOCK_EVENT_REASONS, DeviceHealth, DeviceInfo, ProcessUse, Sample
from exporter.snapshot import BackendView, GpuView, Snapshot

Row: TypeAlias = tuple[str, tuple[str, ...], float]

_SAMPLE_GAUGES = (
    ("gpu_temperature_celsius", "temperature_celsius"),
    ("gpu_temperature_margin_celsius", "temperature_margin_celsius"),
    ("gpu_memory_temperature_celsius", "memory_temperature_celsius"),
    ("gpu_memory_total_bytes", "memory_total_bytes"),
    ("gpu_memory_used_bytes", "memory_used_bytes"),
    ("gpu_memory_free_bytes", "memory_free_bytes"),
    ("gpu_memory_reserved_bytes", "memory_reserved_bytes"),
    ("gpu_utilization_ratio", "utilization_ratio"),
    ("gpu_memory_utilization_ratio", "memory_utilization_ratio"),
    ("gpu_encoder_utilization_ratio", "encoder_utilization_ratio"),
    ("gpu_decoder_utilization_ratio", "decoder_utilization_ratio"),
    ("gpu_power_watts", "power_watts"),
    ("gpu_power_limit_watts", "power_limit_watts"),
    ("gpu_energy_joules_total", "energy_joules"),
    ("gpu_performance_state", "performance_state"),
)
_HEALTH_GAUGES = (
    ("gpu_row_remap_pending", "row_remap_pending"),
    ("gpu_row_remap_failure", "row_remap_failure"),
    ("gpu_pcie_link_generation", "pcie_link_generation"),
    ("gpu_pcie_link_width", "pcie_link_width"),
    ("gpu_pcie_replays_total", "pcie_replays"),
)
_INFO_GAUGES = (
    ("gpu_power_limit_default_watts", "power_limit_default_watts"),
    ("gpu_power_limit_min_watts", "power_limit_min_watts"),
    ("gpu_power_limit_max_watts", "power_limit_max_watts"),
    ("gpu_pcie_link_generation_max", "pcie_link_generation_max"),
    ("gpu_pcie_link_width_max", "pcie_link_width_max"),
)
_MIG_GAUGES = (
    ("gpu_mig_memory_total_bytes", "memory_total_bytes"),
    ("gpu_mig_memory_used_bytes", "memory_used_bytes"),
    ("gpu_mig_memory_free_bytes", "memory_free_bytes"),
)


def identity(info: DeviceInfo) -> tuple[str, str]:
    """Return the labels `gpu` and `uuid`; the index is empty when it is not known."""
    return ("" if info.index is None else str(info.index), info.uuid)


def steady_rows(view: GpuView, snapshot: Snapshot) -> Iterator[Row]:
    """Say what changes seldom: identity, policy, limits of the hardware, processes."""
    info = view.info
    yield "gpu_info", _info_labels(info, snapshot.backend), 1.0
    yield from _policy(view, snapshot)
    if view.up:
        yield from _present(info, _INFO_GAUGES)
        yield from _by_label("gpu_temperature_limit_celsius", info.temperature_limits_celsius)
        yield from _by_label("gpu_clock_max_hertz", info.clocks_max_hertz)
    if view.process_count is not None:
        yield "gpu_processes", (), float(view.process_count)
    for process in view.processes or ():
        used = process.memory_used_bytes
        if used is not None:
            yield "gpu_process_memory_used_bytes", _process_labels(process), float(used)
        if process.utilization_ratio is not None:
            labels = _process_labels(process)
            yield "gpu_process_utilization_ratio", labels, process.utilization_ratio
        if process.container_id or process.pod_uid:
            yield "gpu_process_info", _process_info_labels(process), 1.0
    if view.health is not None:
        yield from _health(view.health)
    for xid in view.xids or ():
        yield "gpu_xid_errors_total", (str(xid.xid),), float(xid.count)
        if xid.last_at is not None:
            yield "gpu_xid_last_timestamp_seconds", (str(xid.xid),), xid.last_at


def steady_key(snapshot: Snapshot) -> object:
    """Return all that `steady_rows` looks at: equal keys have equal rows."""
    views = tuple(
        (
            view.info,
            view.up,
            view.thresholds,
            view.process_count,
            view.processes,
            None
            if view.health is None
            else replace(view.health, clock_event_seconds=None, nvlink_bytes=None),
            view.xids,
        )
        for view in snapshot.gpus
    )
    return (snapshot.backend, snapshot.saturation, views)


def gpu_rows(view: GpuView) -> Iterator[Row]:
    """Say what every sample changes; what could not be read is left out."""
    yield "gpu_up", (), float(view.up)
    if view.fault is not None:
        yield "gpu_fault", (str(view.fault),), 1.0
    if view.sampled_at is not None:
        yield "gpu_exporter_last_collect_timestamp_seconds", (), view.sampled_at
    if view.sample is not None:
        yield from _sample(view.sample)
    if view.busy_seconds is not None:
        yield "gpu_busy_seconds_total", (), view.busy_seconds
    if view.saturated_seconds is not None:
        yield "gpu_saturated_duration_seconds", (), view.saturated_seconds
    if view.health is not None:
        yield from _by_label("gpu_clock_event_seconds_total", view.health.clock_event_seconds or {})
        yield from _by_label("gpu_nvlink_bytes_total", view.health.nvlink_bytes or {})


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
    yield from _by_label("gpu_exporter_collect_duration_seconds", snapshot.durations)
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
    yield from _present(reading, names)
    for filesystem in reading.filesystems:
        labels = (filesystem.mountpoint,)
        yield "host_filesystem_size_bytes", labels, float(filesystem.size_bytes)
        yield "host_filesystem_free_bytes", labels, float(filesystem.free_bytes)


def _policy(view: GpuView, snapshot: Snapshot) -> Iterator[Row]:
    limits = view.thresholds.temperature
    levels = {"warning": limits.warning, "critical": limits.critical, "shutdown": limits.shutdown}
    yield from _by_label("gpu_temperature_threshold_celsius", levels)
    yield from _by_label(
        "gpu_memory_threshold_bytes",
        view.thresholds.memory.thresholds_bytes(view.info.memory_total_bytes),
    )
    yield "gpu_saturation_threshold_ratio", (), snapshot.saturation.ratio
    yield "gpu_saturation_threshold_seconds", (), snapshot.saturation.seconds


def _sample(sample: Sample) -> Iterator[Row]:
    yield from _present(sample, _SAMPLE_GAUGES)
    yield from _by_label("gpu_clock_hertz", sample.clocks_hertz or {})
    if sample.clock_events is not None:
        for reason in CLOCK_EVENT_REASONS:
            yield "gpu_clock_event_active", (reason,), float(reason in sample.clock_events)
    for fan, ratio in enumerate(sample.fan_speed_ratios or ()):
        yield "gpu_fan_speed_ratio", (str(fan),), ratio


def _health(health: DeviceHealth) -> Iterator[Row]:
    yield from _present(health, _HEALTH_GAUGES)
    for severity, by_memory in (health.ecc_errors or {}).items():
        for memory, count in by_memory.items():
            yield "gpu_ecc_errors_total", (severity, memory), float(count)
    yield from _by_label("gpu_remapped_rows_total", health.remapped_rows or {})
    yield from _by_label("gpu_retired_pages_total", health.retired_pages or {})
    if health.recovery_action is not None:
        yield "gpu_recovery_action", (health.recovery_action,), 1.0
    yield from _links(health)
    yield from _mig(health)


def _links(health: DeviceHealth) -> Iterator[Row]:
    yield from _by_label("gpu_pcie_errors_total", health.pcie_errors or {})
    traffic = health.pcie_bytes_per_second or {}
    yield from _by_label("gpu_pcie_throughput_bytes_per_second", traffic)
    for nvlink in health.nvlinks or ():
        link = str(nvlink.link)
        if nvlink.up is not None:
            yield "gpu_nvlink_up", (link,), float(nvlink.up)
        for kind, count in nvlink.errors.items():
            yield "gpu_nvlink_errors_total", (link, kind), float(count)


def _mig(health: DeviceHealth) -> Iterator[Row]:
    yield from _by_label("gpu_mig_mode", health.mig_mode or {})
    for one in health.mig_instances or ():
        ids = (one.gpu_instance, one.compute_instance)
        numbers = ("" if number is None else str(number) for number in ids)
        yield "gpu_mig_info", (one.uuid, *numbers, one.profile), 1.0
        for metric, _, value in _present(one, _MIG_GAUGES):
            yield metric, (one.uuid,), value


def _present(values: object, names: tuple[tuple[str, str], ...]) -> Iterator[Row]:
    for metric, attribute in names:
        value = getattr(values, attribute)
        if value is not None:
            yield metric, (), float(value)


def _by_label(metric: str, values: Mapping[str, float]) -> Iterator[Row]:
    for label, value in values.items():
        yield metric, (label,), float(value)


def _info_labels(info: DeviceInfo, backend: BackendView) -> tuple[str, ...]:
    return (
        info.name,
        info.pci_bus_id,
        backend.driver_version,
        backend.cuda_version,
        info.vbios_version,
        backend.name,
    )


def _process_info_labels(process: ProcessUse) -> tuple[str, ...]:
    return (str(process.pid), process.process, process.container_id, process.pod_uid)


def _process_labels(process: ProcessUse) -> tuple[str, ...]:
    pid = "" if process.pid is None else str(process.pid)
    return (pid, process.process, process.unit, process.container_name)
