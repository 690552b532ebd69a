"""What NVML tells seldom: clock events over time, memory errors, recovery, links and MIG."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from exporter.backends._nvml_links import (
    LINK_COUNT_FIELD,
    PCIE_ERROR_FIELDS,
    PCIE_REPLAY_FIELD,
    NvLinks,
    link_number,
    pcie_replays,
    pcie_traffic,
)
from exporter.backends._nvml_mig import read_mig
from exporter.backends._nvml_reader import Call, Reader
from exporter.readings import RECOVERY_ACTIONS, UNKNOWN_RECOVERY_ACTION, DeviceHealth

_CLOCK_EVENTS = {
    "sw_power_cap": 74,
    "sync_boost": 76,
    "sw_thermal_slowdown": 269,
    "hw_thermal_slowdown": 270,
    "hw_power_brake_slowdown": 271,
}
# Older drivers have one counter for both kinds of heat.
_EITHER_THERMAL = 75
_TWO_THERMALS = (269, 270)
_ECC_TOTAL = {"corrected": 3, "uncorrected": 4}
_ECC_MEMORIES = {"dram": 2, "sram": 7}
_RETIRED = {"single_bit": 29, "double_bit": 30}
_REMAPPED = {"correctable": 142, "uncorrectable": 143}
_REMAP_PENDING, _REMAP_FAILURE = 144, 145
_RECOVERY_ACTION = 230
_FIELDS = (
    *_CLOCK_EVENTS.values(),
    _EITHER_THERMAL,
    *_ECC_TOTAL.values(),
    *_RETIRED.values(),
    *_REMAPPED.values(),
    _REMAP_PENDING,
    _REMAP_FAILURE,
    _RECOVERY_ACTION,
    LINK_COUNT_FIELD,
    PCIE_REPLAY_FIELD,
    *PCIE_ERROR_FIELDS.values(),
)
_VOLATILE = 0
_NANO = 1e-9


def _ecc(severity: int, memory: int) -> Call:
    return lambda nvml, handle: nvml.nvmlDeviceGetMemoryErrorCounter(
        handle, severity, _VOLATILE, memory
    )


CALLS: Mapping[str, tuple[Call, ...]] = MappingProxyType(
    {
        "remapped_rows": (lambda n, h: n.nvmlDeviceGetRemappedRows(h),),
        **{
            f"ecc_{severity}_{memory}": (_ecc(number, location),)
            for number, severity in enumerate(_ECC_TOTAL)
            for memory, location in _ECC_MEMORIES.items()
        },
    }
)


def read_health(reader: Reader, nvlinks: NvLinks, *, pcie_throughput: bool) -> DeviceHealth:
    """Read it all: one call for the fields, and a few for what has no field.

    Raises:
        DeviceFault: the GPU is lost or wants a reset.
        BackendError: the driver is gone for all.
    """
    fields = reader.read_fields(_FIELDS)
    rows = _remapped(reader, fields)
    action = fields.get(_RECOVERY_ACTION)
    links, traffic = nvlinks.read(fields)
    mig_mode, mig_instances = read_mig(reader)
    return DeviceHealth(
        clock_event_seconds=_clock_events(fields),
        ecc_errors=_ecc_errors(reader, fields),
        remapped_rows=_counts(rows, _REMAPPED),
        row_remap_pending=_flag(rows.get(_REMAP_PENDING)),
        row_remap_failure=_flag(rows.get(_REMAP_FAILURE)),
        retired_pages=_counts(fields, _RETIRED),
        recovery_action=None if action is None else _action(int(action)),
        pcie_link_generation=link_number(reader.read("pcie_generation")),
        pcie_link_width=link_number(reader.read("pcie_width")),
        pcie_replays=pcie_replays(reader, fields),
        pcie_errors=_counts(fields, PCIE_ERROR_FIELDS),
        pcie_bytes_per_second=pcie_traffic(reader) if pcie_throughput else None,
        nvlinks=links,
        nvlink_bytes=traffic,
        mig_mode=mig_mode,
        mig_instances=mig_instances,
    )


def _clock_events(fields: Mapping[int, float]) -> dict[str, float] | None:
    events = dict(_CLOCK_EVENTS)
    if not any(number in fields for number in _TWO_THERMALS):
        events["thermal_slowdown"] = _EITHER_THERMAL
    return {
        name: round(fields[number] * _NANO, 9)
        for name, number in events.items()
        if number in fields
    } or None


def _ecc_errors(reader: Reader, fields: Mapping[int, float]) -> dict[str, dict[str, int]] | None:
    """Tell the memories apart, or else give the sum: never both, so that a sum counts once."""
    errors = {}
    for severity, total in _ECC_TOTAL.items():
        names = {memory: f"ecc_{severity}_{memory}" for memory in _ECC_MEMORIES}
        told = {memory: reader.read(name) for memory, name in names.items()}
        if None not in told.values():
            errors[severity] = {memory: int(count) for memory, count in told.items()}
        elif total in fields and not all(map(reader.has_told, names.values())):
            errors[severity] = {"all": int(fields[total])}
    return errors or None


def _remapped(reader: Reader, fields: Mapping[int, float]) -> Mapping[int, float]:
    numbers = (*_REMAPPED.values(), _REMAP_PENDING, _REMAP_FAILURE)
    if any(number in fields for number in numbers):
        return fields
    answer: Any = reader.read("remapped_rows")
    return {} if answer is None else dict(zip(numbers, answer, strict=True))


def _counts(fields: Mapping[int, float], names: Mapping[str, int]) -> dict[str, int] | None:
    return {name: int(fields[field]) for name, field in names.items() if field in fields} or None


def _flag(value: float | None) -> bool | None:
    return None if value is None else value != 0


def _action(number: int) -> str:
    known = 0 <= number < len(RECOVERY_ACTIONS)
    return RECOVERY_ACTIONS[number] if known else UNKNOWN_RECOVERY_ACTION
