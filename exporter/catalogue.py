"""The catalogue: every metric that the exporter serves, and nothing else.

A series that is not described here cannot be exported, and the tests hold that what is described
here is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """The type of a metric."""

    GAUGE = "gauge"
    COUNTER = "counter"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row.

    Attributes:
        name: as Prometheus shows it, with unit and `_total` or `_info`.
        unit: the base unit, which the name holds; empty for counts, states and `_info`.
        labels: beyond the identity labels `gpu` and `uuid`, which `per_gpu` adds.
    """

    name: str
    kind: Kind
    help: str
    unit: str = ""
    labels: tuple[str, ...] = ()
    per_gpu: bool = True

    @property
    def label_names(self) -> tuple[str, ...]:
        """All labels, in the order in which values are given."""
        return (*IDENTITY, *self.labels) if self.per_gpu else self.labels


IDENTITY = ("gpu", "uuid")
PROCESS_LABELS = ("pid", "process", "unit", "container_name")
INFO_LABELS = (
    "name",
    "pci_bus_id",
    "driver_version",
    "cuda_version",
    "vbios_version",
    "backend",
)


def _gauge(name: str, text: str, unit: str = "", labels: tuple[str, ...] = ()) -> Metric:
    return Metric(name, Kind.GAUGE, text, unit, labels)


def _counter(name: str, text: str, unit: str = "", labels: tuple[str, ...] = ()) -> Metric:
    return Metric(name, Kind.COUNTER, text, unit, labels)


def _host(metric: Metric) -> Metric:
    return Metric(metric.name, metric.kind, metric.help, metric.unit, metric.labels, per_gpu=False)


_GPU = (
    Metric("gpu_info", Kind.INFO, "Identity of the GPU; join it by uuid.", labels=INFO_LABELS),
    _gauge("gpu_up", "1 if the GPU answers, 0 if it is expected and does not."),
    _gauge("gpu_fault", "1 while the GPU is at fault, by reason; absent else.", "", ("reason",)),
    _gauge("gpu_temperature_celsius", "Core temperature.", "celsius"),
    _gauge(
        "gpu_temperature_margin_celsius",
        "Distance to the nearest temperature at which the card slows down.",
        "celsius",
    ),
    _gauge("gpu_memory_temperature_celsius", "Memory temperature.", "celsius"),
    _gauge("gpu_temperature_threshold_celsius", "Policy: alert above this.", "celsius", ("level",)),
    _gauge(
        "gpu_temperature_limit_celsius",
        "The hardware's own temperature limits.",
        "celsius",
        ("limit",),
    ),
    _gauge("gpu_memory_total_bytes", "Memory of the card.", "bytes"),
    _gauge("gpu_memory_used_bytes", "Memory that is allocated.", "bytes"),
    _gauge("gpu_memory_free_bytes", "Memory that can be allocated.", "bytes"),
    _gauge("gpu_memory_reserved_bytes", "Memory that the driver keeps for itself.", "bytes"),
    _gauge("gpu_memory_threshold_bytes", "Policy: alert above this.", "bytes", ("level",)),
    _gauge("gpu_utilization_ratio", "Share of time in which a kernel ran.", "ratio"),
    _gauge("gpu_memory_utilization_ratio", "Share of time in which memory was used.", "ratio"),
    _gauge("gpu_encoder_utilization_ratio", "Share of time in which video was encoded.", "ratio"),
    _gauge("gpu_decoder_utilization_ratio", "Share of time in which video was decoded.", "ratio"),
    _counter("gpu_busy_seconds_total", "Utilization integrated over time.", "seconds"),
    _gauge(
        "gpu_saturated_duration_seconds",
        "For how long utilization has been at or above its threshold without a break.",
        "seconds",
    ),
    _gauge("gpu_saturation_threshold_ratio", "Policy: saturated at or above this.", "ratio"),
    _gauge(
        "gpu_saturation_threshold_seconds", "Policy: a hang is suspected after this.", "seconds"
    ),
    _gauge("gpu_power_watts", "Power draw.", "watts"),
    _gauge("gpu_power_limit_watts", "Power limit that is set.", "watts"),
    _gauge("gpu_power_limit_default_watts", "Power limit of the factory.", "watts"),
    _gauge("gpu_power_limit_min_watts", "Lowest power limit that can be set.", "watts"),
    _gauge("gpu_power_limit_max_watts", "Highest power limit that can be set.", "watts"),
    _counter("gpu_energy_joules_total", "Energy used since the driver was loaded.", "joules"),
    _gauge("gpu_clock_hertz", "Clock frequency.", "hertz", ("clock",)),
    _gauge("gpu_clock_max_hertz", "Highest clock frequency.", "hertz", ("clock",)),
    _gauge("gpu_clock_event_active", "1 if this holds the clocks down, 0 if not.", "", ("reason",)),
    _counter(
        "gpu_clock_event_seconds_total",
        "For how long this has held the clocks down since the driver was loaded.",
        "seconds",
        ("reason",),
    ),
    _gauge("gpu_fan_speed_ratio", "Fan speed as a share of its maximum.", "ratio", ("fan",)),
    _gauge("gpu_performance_state", "Performance state, from 0 (fastest) to 15."),
    _counter(
        "gpu_ecc_errors_total",
        "ECC errors since the driver was loaded.",
        "",
        ("severity", "memory"),
    ),
    _counter("gpu_remapped_rows_total", "Memory rows remapped.", "", ("cause",)),
    _gauge("gpu_row_remap_pending", "1 if a row is remapped with the next reset, 0 if none."),
    _gauge("gpu_row_remap_failure", "1 if a row could not be remapped, 0 if none."),
    _counter("gpu_retired_pages_total", "Memory pages retired.", "", ("cause",)),
    _gauge("gpu_recovery_action", "1 for what the driver asks for; none is one.", "", ("action",)),
    _counter(
        "gpu_xid_errors_total",
        "Xid errors heard of; those that the card may need something for from zero.",
        "",
        ("xid",),
    ),
    _gauge(
        "gpu_xid_last_timestamp_seconds", "When this Xid was heard of last.", "seconds", ("xid",)
    ),
    _gauge("gpu_pcie_link_generation", "Generation of the PCIe link now."),
    _gauge("gpu_pcie_link_generation_max", "Generation that card and slot both have."),
    _gauge("gpu_pcie_link_width", "Lanes of the PCIe link now."),
    _gauge("gpu_pcie_link_width_max", "Lanes that card and slot both have."),
    _counter("gpu_pcie_replays_total", "PCIe packets that were sent again."),
    _counter("gpu_pcie_errors_total", "Errors of the PCIe link.", "", ("kind",)),
    _gauge(
        "gpu_pcie_throughput_bytes_per_second",
        "PCIe traffic in the 20 ms that the driver looked; off unless configured.",
        "bytes_per_second",
        ("direction",),
    ),
    _gauge("gpu_nvlink_up", "1 if the link is up, 0 if not.", "", ("link",)),
    _counter("gpu_nvlink_errors_total", "Errors of the link.", "", ("link", "kind")),
    _counter("gpu_nvlink_bytes_total", "Data over all links.", "bytes", ("direction",)),
    _gauge("gpu_mig_mode", "1 if the card is divided by MIG, 0 if not.", "", ("when",)),
    Metric(
        "gpu_mig_info",
        Kind.INFO,
        "A MIG device; join its memory by mig_uuid.",
        labels=("mig_uuid", "gpu_instance", "compute_instance", "profile"),
    ),
    _gauge("gpu_mig_memory_total_bytes", "Memory of a MIG device.", "bytes", ("mig_uuid",)),
    _gauge("gpu_mig_memory_used_bytes", "Memory that is allocated.", "bytes", ("mig_uuid",)),
    _gauge("gpu_mig_memory_free_bytes", "Memory that can be allocated.", "bytes", ("mig_uuid",)),
    _gauge("gpu_processes", "Processes that use the GPU."),
    _gauge(
        "gpu_process_memory_used_bytes",
        "GPU memory of a process; process=other without a pid sums up those beyond the limit.",
        "bytes",
        PROCESS_LABELS,
    ),
    _gauge(
        "gpu_process_utilization_ratio",
        "Share of time in which kernels of the process ran when it last computed.",
        "ratio",
        PROCESS_LABELS,
    ),
    Metric(
        "gpu_process_info",
        Kind.INFO,
        "Container and Kubernetes pod of a process; only of processes in one.",
        labels=("pid", "process", "container_id", "pod_uid"),
    ),
    _gauge("gpu_exporter_last_collect_timestamp_seconds", "When the GPU was last read.", "seconds"),
)

_HOST = (
    _gauge("gpu_devices_visible", "GPUs that the driver opened."),
    _gauge("gpu_devices_expected", "GPUs that should be here."),
    _gauge("gpu_exporter_backend_up", "1 if the way to the GPUs is open.", "", ("backend",)),
    _gauge("gpu_exporter_backend_fault", "1 while it is not, by reason.", "", ("reason",)),
    _gauge("host_memory_total_bytes", "Memory of the host.", "bytes"),
    _gauge("host_memory_available_bytes", "Memory of the host that can be had.", "bytes"),
    _gauge("host_filesystem_size_bytes", "Size of the filesystem.", "bytes", ("mountpoint",)),
    _gauge(
        "host_filesystem_free_bytes",
        "Space that an unprivileged user can have.",
        "bytes",
        ("mountpoint",),
    ),
    _counter("host_oom_kills_total", "Processes that the kernel killed for memory since boot."),
    Metric("gpu_exporter_build_info", Kind.INFO, "This exporter.", labels=("version",)),
    _gauge(
        "gpu_exporter_collect_duration_seconds",
        "How long the last collection took, the slowest GPU's.",
        "seconds",
        ("collector",),
    ),
    _counter(
        "gpu_exporter_collect_errors_total",
        "Collections, or readings in them, that failed.",
        "",
        ("collector", "reason"),
    ),
    _gauge(
        "gpu_exporter_collect_running_seconds",
        "How long the longest driver call has been going on.",
        "seconds",
    ),
    _counter("gpu_exporter_worker_restarts_total", "Replacements of a worker that did not work."),
    _gauge("gpu_exporter_workers_stuck", "Workers stuck in the driver and left alone."),
    _gauge(
        "gpu_exporter_web_config_last_reload_successful",
        "1 while what --web.config.file says is in force, 0 while something older is.",
    ),
    _gauge(
        "gpu_exporter_web_config_last_reload_success_timestamp_seconds",
        "When what is in force of --web.config.file was read.",
        "seconds",
    ),
    _gauge(
        "gpu_exporter_web_certificate_expiry_timestamp_seconds",
        "When the first of the server's certificates ceases to be good.",
        "seconds",
    ),
)

METRICS: dict[str, Metric] = {
    metric.name: metric for metric in (*_GPU, *(_host(metric) for metric in _HOST))
}
