"""What is said of one GPU, as rows, in parts that change together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from exporter.policy import SaturationPolicy, Thresholds
from exporter.readings import (
    CLOCK_EVENT_REASONS,
    DeviceHealth,
    DeviceInfo,
    FaultReason,
    ProcessUse,
    Sample,
)
from exporter.rows import Row, by_label, present
from exporter.snapshot import BackendView, GpuView, Snapshot
from exporter.xid_ledger import XidCount

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


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that change together.

    Attributes:
        seen: picks all that the rows are made from, so that what is equal need not be made again.
        rows: makes them from that, and looks at nothing else.
    """

    seen: Callable[[GpuView, Snapshot], tuple[object, ...]]
    rows: Callable[..., Iterator[Row]]


def _identity(
    info: DeviceInfo,
    up: bool,
    thresholds: Thresholds,
    backend: BackendView,
    saturation: SaturationPolicy,
) -> Iterator[Row]:
    yield "gpu_info", _info_labels(info, backend), 1.0
    yield from _policy(info, thresholds, saturation)
    if up:
        yield from present(info, _INFO_GAUGES)
        yield from by_label("gpu_temperature_limit_celsius", info.temperature_limits_celsius)
        yield from by_label("gpu_clock_max_hertz", info.clocks_max_hertz)


def _processes(count: int | None, processes: tuple[ProcessUse, ...] | None) -> Iterator[Row]:
    if count is not None:
        yield "gpu_processes", (), float(count)
    for process in processes or ():
        used = process.memory_used_bytes
        if used is not None:
            yield "gpu_process_memory_used_bytes", _process_labels(process), float(used)
        if process.utilization_ratio is not None:
            labels = _process_labels(process)
            yield "gpu_process_utilization_ratio", labels, process.utilization_ratio
        if process.container_id or process.pod_uid:
            yield "gpu_process_info", _process_info_labels(process), 1.0


def _xids(xids: tuple[XidCount, ...] | None) -> Iterator[Row]:
    for xid in xids or ():
        yield "gpu_xid_errors_total", (str(xid.xid),), float(xid.count)
        if xid.last_at is not None:
            yield "gpu_xid_last_timestamp_seconds", (str(xid.xid),), xid.last_at


def _now(
    up: bool,
    fault: FaultReason | None,
    sampled_at: float | None,
    sample: Sample | None,
    busy_seconds: float | None,
    saturated_seconds: float | None,
) -> Iterator[Row]:
    yield "gpu_up", (), float(up)
    if fault is not None:
        yield "gpu_fault", (str(fault),), 1.0
    if sampled_at is not None:
        yield "gpu_exporter_last_collect_timestamp_seconds", (), sampled_at
    if sample is not None:
        yield from _sample(sample)
    if busy_seconds is not None:
        yield "gpu_busy_seconds_total", (), busy_seconds
    if saturated_seconds is not None:
        yield "gpu_saturated_duration_seconds", (), saturated_seconds


def _policy(
    info: DeviceInfo, thresholds: Thresholds, saturation: SaturationPolicy
) -> Iterator[Row]:
    limits = thresholds.temperature
    levels = {"warning": limits.warning, "critical": limits.critical, "shutdown": limits.shutdown}
    yield from by_label("gpu_temperature_threshold_celsius", levels)
    bytes_by_level = thresholds.memory.thresholds_bytes(info.memory_total_bytes)
    yield from by_label("gpu_memory_threshold_bytes", bytes_by_level)
    yield "gpu_saturation_threshold_ratio", (), saturation.ratio
    yield "gpu_saturation_threshold_seconds", (), saturation.seconds


def _sample(sample: Sample) -> Iterator[Row]:
    yield from present(sample, _SAMPLE_GAUGES)
    yield from by_label("gpu_clock_hertz", sample.clocks_hertz or {})
    if sample.clock_events is not None:
        for reason in CLOCK_EVENT_REASONS:
            yield "gpu_clock_event_active", (reason,), float(reason in sample.clock_events)
    for fan, ratio in enumerate(sample.fan_speed_ratios or ()):
        yield "gpu_fan_speed_ratio", (str(fan),), ratio


def _health(health: DeviceHealth | None) -> Iterator[Row]:
    if health is None:
        return
    yield from present(health, _HEALTH_GAUGES)
    for severity, by_memory in (health.ecc_errors or {}).items():
        for memory, count in by_memory.items():
            yield "gpu_ecc_errors_total", (severity, memory), float(count)
    yield from by_label("gpu_remapped_rows_total", health.remapped_rows or {})
    yield from by_label("gpu_retired_pages_total", health.retired_pages or {})
    if health.recovery_action is not None:
        yield "gpu_recovery_action", (health.recovery_action,), 1.0
    yield from by_label("gpu_clock_event_seconds_total", health.clock_event_seconds or {})
    yield from _links(health)
    yield from _mig(health)


def _links(health: DeviceHealth) -> Iterator[Row]:
    yield from by_label("gpu_pcie_errors_total", health.pcie_errors or {})
    traffic = health.pcie_bytes_per_second or {}
    yield from by_label("gpu_pcie_throughput_bytes_per_second", traffic)
    yield from by_label("gpu_nvlink_bytes_total", health.nvlink_bytes or {})
    for nvlink in health.nvlinks or ():
        link = str(nvlink.link)
        if nvlink.up is not None:
            yield "gpu_nvlink_up", (link,), float(nvlink.up)
        for kind, count in nvlink.errors.items():
            yield "gpu_nvlink_errors_total", (link, kind), float(count)


def _mig(health: DeviceHealth) -> Iterator[Row]:
    yield from by_label("gpu_mig_mode", health.mig_mode or {})
    for one in health.mig_instances or ():
        ids = (one.gpu_instance, one.compute_instance)
        numbers = ("" if number is None else str(number) for number in ids)
        yield "gpu_mig_info", (one.uuid, *numbers, one.profile), 1.0
        for metric, _, value in present(one, _MIG_GAUGES):
            yield metric, (one.uuid,), value


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


PARTS = (
    Part(
        lambda view, snapshot: (
            view.info,
            view.up,
            view.thresholds,
            snapshot.backend,
            snapshot.saturation,
        ),
        _identity,
    ),
    Part(lambda view, _: (view.process_count, view.processes), _processes),
    Part(lambda view, _: (view.health,), _health),
    Part(lambda view, _: (view.xids,), _xids),
    Part(
        lambda view, _: (
            view.up,
            view.fault,
            view.sampled_at,
            view.sample,
            view.busy_seconds,
            view.saturated_seconds,
        ),
        _now,
    ),
)
"""All that is said of a GPU."""
