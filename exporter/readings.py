"""What a GPU says, in base units. `None` is "could not be read"; it is never a number.

These values cross the pipe between the worker and its parent, so this module imports nothing
heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

CLOCK_DOMAINS = ("graphics", "sm", "memory", "video")
CLOCK_EVENT_REASONS = (
    "gpu_idle",
    "applications_clocks_setting",
    "sw_power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
    "display_clock_setting",
)
# The driver's own numbering (`nvmlDeviceGpuRecoveryAction_t`).
RECOVERY_ACTIONS = (
    "none",
    "reset",
    "reboot",
    "drain_p2p",
    "drain_and_reset",
    "recover_imex_domain",
    "bus_reset",
    "system_reboot",
)
UNKNOWN_RECOVERY_ACTION = "unknown"

# Stretches of time, oldest first: seconds, and the value that held in them or None for a gap.
Spans: TypeAlias = tuple[tuple[float, float | None], ...]


class FaultReason(StrEnum):
    """Why one GPU is down; each has another remedy."""

    LOST = "lost"
    RESET_REQUIRED = "reset_required"
    TIMEOUT = "timeout"
    UNKNOWN = "unknown"
    RELEASED = "released"


class BackendReason(StrEnum):
    """Why no GPU at all can be read."""

    LIBRARY_MISSING = "library_missing"
    DRIVER_NOT_LOADED = "driver_not_loaded"
    VERSION_MISMATCH = "version_mismatch"
    NOT_IN_CONTAINER = "not_in_container"
    NO_PERMISSION = "no_permission"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What does not change while a driver is loaded.

    Attributes:
        index: position in this enumeration; renumbered when a card drops. None when unknown.
        uuid: identity.
        pci_bus_id: as the driver writes it, for example `00000000:17:00.0`.
        pcie_link_generation_max: that the card and its slot both have.
        pcie_link_width_max: in lanes.
        clocks_max_hertz: by clock domain (`CLOCK_DOMAINS`).
        temperature_limits_celsius: the hardware's own, absolute: `slowdown`, `shutdown`,
            `memory_max`, `gpu_max`.
    """

    index: int | None
    uuid: str
    name: str = ""
    pci_bus_id: str = ""
    vbios_version: str = ""
    memory_total_bytes: int | None = None
    power_limit_default_watts: float | None = None
    power_limit_min_watts: float | None = None
    power_limit_max_watts: float | None = None
    pcie_link_generation_max: int | None = None
    pcie_link_width_max: int | None = None
    clocks_max_hertz: Mapping[str, float] = field(default_factory=dict)
    temperature_limits_celsius: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of one GPU.

    Attributes:
        temperature_margin_celsius: to the nearest limit at which the card slows down.
        memory_used_bytes: without what the driver reserves, where it tells the two apart.
        utilization_ratio: share of the driver's last window in which a kernel ran, 0 to 1.
        power_limit_watts: the limit that is set now.
        energy_joules: counter since the driver was loaded.
        clock_events: the active ones of `CLOCK_EVENT_REASONS`; empty when none is.
        fan_speed_ratios: by fan number.
        performance_state: 0 (fastest) to 15.
    """

    temperature_celsius: float | None = None
    temperature_margin_celsius: float | None = None
    memory_temperature_celsius: float | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_reserved_bytes: int | None = None
    utilization_ratio: float | None = None
    memory_utilization_ratio: float | None = None
    encoder_utilization_ratio: float | None = None
    decoder_utilization_ratio: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    energy_joules: float | None = None
    clocks_hertz: Mapping[str, float] | None = None
    clock_events: tuple[str, ...] | None = None
    fan_speed_ratios: tuple[float, ...] | None = None
    performance_state: int | None = None


@dataclass(frozen=True, slots=True)
class NvLink:
    """One NVLink of a GPU.

    Attributes:
        up: it carries traffic, or would; None when it does not say.
        errors: counters by kind: `replay`, `recovery`, `crc`; on NVLink 5 `link_recovery`,
            `link_recovery_failed` and `receive`.
    """

    link: int
    up: bool | None = None
    errors: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MigInstance:
    """One MIG device of a GPU. Compute instances of one GPU instance share its memory.

    Attributes:
        profile: as the driver writes it, for example `1g.5gb`.
    """

    uuid: str
    gpu_instance: int | None = None
    compute_instance: int | None = None
    profile: str = ""
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """What changes seldom and tells how well a GPU is.

    Attributes:
        clock_event_seconds: by reason, for how long it has held the clocks down since the driver
            was loaded; `thermal_slowdown` where a driver does not tell its two kinds apart.
        ecc_errors: since the driver was loaded, by severity (`corrected`, `uncorrected`), then by
            memory: `dram` and `sram`, or `all` where the card does not tell them apart.
        remapped_rows: by cause (`correctable`, `uncorrectable`), over the life of the card.
        row_remap_pending: a remapping takes effect with the next reset.
        row_remap_failure: a remapping was not possible.
        retired_pages: by cause (`single_bit`, `double_bit`), over the life of the card.
        recovery_action: what the driver asks for, of `RECOVERY_ACTIONS`;
            `UNKNOWN_RECOVERY_ACTION` is one that this version does not know.
        pcie_link_generation: now; that of a card that idles is lower.
        pcie_link_width: in lanes.
        pcie_replays: counter of packets that were sent again.
        pcie_errors: counters by kind: `correctable`, `receiver`, `bad_tlp`, `bad_dllp`,
            `non_fatal`, `fatal`, `lcrc`.
        pcie_bytes_per_second: by direction (`transmit`, `receive`), seen from the GPU.
        nvlinks: None where there are none.
        nvlink_bytes: counters over all links, by direction (`transmit`, `receive`).
        mig_mode: whether it is divided, `current` and `pending` (from the next reset on).
        mig_instances: empty while it is not divided.
    """

    clock_event_seconds: Mapping[str, float] | None = None
    ecc_errors: Mapping[str, Mapping[str, int]] | None = None
    remapped_rows: Mapping[str, int] | None = None
    row_remap_pending: bool | None = None
    row_remap_failure: bool | None = None
    retired_pages: Mapping[str, int] | None = None
    recovery_action: str | None = None
    pcie_link_generation: int | None = None
    pcie_link_width: int | None = None
    pcie_replays: int | None = None
    pcie_errors: Mapping[str, int] | None = None
    pcie_bytes_per_second: Mapping[str, int] | None = None
    nvlinks: tuple[NvLink, ...] | None = None
    nvlink_bytes: Mapping[str, int] | None = None
    mig_mode: Mapping[str, bool] | None = None
    mig_instances: tuple[MigInstance, ...] | None = None


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """One process on one GPU; `pid` is None in the remainder that sums up what was capped.

    Attributes:
        process: name without arguments, empty when it cannot be read.
        unit: systemd unit, empty when there is none.
        container_name: empty when it is in none; the beginning of the id where the name is not known.
        container_id: empty when it is in none.
        pod_uid: of its Kubernetes pod, empty when there is none.
        utilization_ratio: share of time in which its kernels ran, when it last did since the last
            look; None where it did not, or where that is not told.
    """

    pid: int | None
    process: str = ""
    unit: str = ""
    container_name: str = ""
    memory_used_bytes: int | None = None
    container_id: str = ""
    pod_uid: str = ""
    utilization_ratio: float | None = None


def clock_event_names(bits: int) -> tuple[str, ...]:
    """Return the reasons of a driver's mask."""
    return tuple(name for bit, name in enumerate(CLOCK_EVENT_REASONS) if bits >> bit & 1)
