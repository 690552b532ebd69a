"""One GPU through nvidia-smi."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from exporter.backends._smi_cells import Cells, split
from exporter.backends._smi_command import SmiCommand
from exporter.backends._smi_query import Query, ask, check
from exporter.backends.base import HealthResult, ProcessesResult, SampleResult
from exporter.environment import Environment
from exporter.errors import DeviceFault, ReadingError
from exporter.readings import (
    CLOCK_DOMAINS,
    RECOVERY_ACTIONS,
    UNKNOWN_RECOVERY_ACTION,
    DeviceHealth,
    DeviceInfo,
    FaultReason,
    ProcessUse,
    Sample,
    clock_event_names,
)

_MIB = 2**20
_MEGA = 1e6
_MICRO = 1e-6
_SMI_CLOCKS = {"graphics": "gr", "sm": "sm", "memory": "mem", "video": "video"}
_CLOCK_EVENTS = (
    "sw_power_cap",
    "sync_boost",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
)
_SEVERITIES = ("corrected", "uncorrected")
_APPS = ("pid", "used", "process")

# By reading: the fields that have it, newest first. What comes last may hold commas.
STATIC: Mapping[str, tuple[str, ...]] = {
    "index": ("index",),
    "pci_bus_id": ("pci.bus_id",),
    "driver_version": ("driver_version",),
    "vbios_version": ("vbios_version",),
    "memory_total": ("memory.total",),
    "power_default": ("power.default_limit",),
    "power_min": ("power.min_limit",),
    "power_max": ("power.max_limit",),
    "pcie_generation_max": ("pcie.link.gen.max",),
    "pcie_width_max": ("pcie.link.width.max",),
    **{f"clock_{name}": (f"clocks.max.{field}",) for name, field in _SMI_CLOCKS.items()},
    "name": ("name",),
}
SAMPLE: Mapping[str, tuple[str, ...]] = {
    "temperature": ("temperature.gpu",),
    "temperature_margin": ("temperature.gpu.tlimit",),
    "memory_temperature": ("temperature.memory",),
    "memory_total": ("memory.total",),
    "memory_used": ("memory.used",),
    "memory_free": ("memory.free",),
    "memory_reserved": ("memory.reserved",),
    "utilization": ("utilization.gpu",),
    "memory_utilization": ("utilization.memory",),
    "encoder": ("utilization.encoder",),
    "decoder": ("utilization.decoder",),
    "power": ("power.draw",),
    "power_limit": ("power.limit",),
    "clock_events": ("clocks_event_reasons.active", "clocks_throttle_reasons.active"),
    "fan": ("fan.speed",),
    "state": ("pstate",),
    **{f"clock_{name}": (f"clocks.current.{name}",) for name in CLOCK_DOMAINS},
}
HEALTH: Mapping[str, tuple[str, ...]] = {
    **{name: (f"clocks_event_reasons_counters.{name}",) for name in _CLOCK_EVENTS},
    **{
        f"{severity}_{memory}": (f"ecc.errors.{severity}.volatile.{memory}",)
        for severity in _SEVERITIES
        for memory in ("dram", "sram", "total")
    },
    "correctable": ("remapped_rows.correctable",),
    "uncorrectable": ("remapped_rows.uncorrectable",),
    "remap_pending": ("remapped_rows.pending",),
    "remap_failure": ("remapped_rows.failure",),
    "single_bit": ("retired_pages.single_bit_ecc.count",),
    "double_bit": ("retired_pages.double_bit.count",),
    "recovery_action": ("gpu_recovery_action",),
    "pcie_generation": ("pcie.link.gen.gpucurrent", "pcie.link.gen.current"),
    "pcie_width": ("pcie.link.width.current",),
    "mig_current": ("mig.mode.current",),
    "mig_pending": ("mig.mode.pending",),
}


class SmiDevice:
    """One GPU; `Device` of the backend contract."""

    def __init__(
        self,
        info: DeviceInfo,
        command: SmiCommand,
        sample: Callable[[SmiCommand], Cells],
        health: Query,
        environment: Environment,
    ) -> None:
        """Read this GPU by `command`, its samples by `sample`, which may ask for all at once."""
        self._info = info
        self._command = command
        self._sample = sample
        self._health = health
        self._environment = environment

    @property
    def info(self) -> DeviceInfo:
        """What was read when it was opened."""
        return self._info

    def sample(self) -> SampleResult:
        """Read what changes all the time.

        Raises:
            DeviceFault: the GPU, or nvidia-smi about it, does not answer.
            BackendError: no GPU can be read.
        """
        cells = self._sample(self._command)
        return SampleResult(sample_of(cells), tuple(cells.errors))

    def health(self) -> HealthResult:
        """Read what changes seldom; raises as `sample`."""
        cells = row(self._health.read(self._command, self._info.uuid), self._info.uuid)
        return HealthResult(_health_of(cells), tuple(cells.errors))

    def processes(self) -> ProcessesResult:
        """List who computes on it.

        Raises:
            DeviceFault, BackendError: as `sample`.
            ReadingError: only the list cannot be read.
        """
        fields = "--query-compute-apps=pid,used_gpu_memory,process_name"
        form = "--format=csv,noheader,nounits"
        answer = ask(self._command, f"--id={self._info.uuid}", fields, form)
        check(answer, self._environment)
        found: dict[int, ProcessUse] = {}
        for line in answer.output.splitlines():
            values = split(line, len(_APPS))
            if len(values) != len(_APPS):
                continue
            cells = Cells(_APPS, values)
            pid = cells.whole("pid")
            if pid is not None:
                use = ProcessUse(pid, _program(cells), memory_used_bytes=cells.whole("used", _MIB))
                found[pid] = _together(found[pid], use) if pid in found else use
            elif cells.errors:
                raise ReadingError(cells.errors[0])
        return ProcessesResult(tuple(found.values()))


def row(rows: Mapping[str, Cells | DeviceFault], uuid: str) -> Cells:
    """Return the row of a GPU.

    Raises:
        DeviceFault: its row says so, or it has none.
    """
    found = rows.get(uuid)
    if isinstance(found, DeviceFault):
        raise found
    if found is None:
        raise DeviceFault(FaultReason.LOST, "nvidia-smi does not list it any more")
    return found


def info_of(uuid: str, cells: Cells) -> DeviceInfo:
    """Return what does not change."""
    return DeviceInfo(
        index=cells.whole("index"),
        uuid=uuid,
        name=cells.text("name") or "",
        pci_bus_id=cells.text("pci_bus_id") or "",
        vbios_version=cells.text("vbios_version") or "",
        memory_total_bytes=cells.whole("memory_total", _MIB),
        power_limit_default_watts=cells.number("power_default"),
        power_limit_min_watts=cells.number("power_min"),
        power_limit_max_watts=cells.number("power_max"),
        pcie_link_generation_max=cells.whole("pcie_generation_max") or None,
        pcie_link_width_max=cells.whole("pcie_width_max") or None,
        clocks_max_hertz=_clocks(cells) or {},
    )


def sample_of(cells: Cells) -> Sample:
    """Return what changes all the time."""
    events, fan, state = cells.bits("clock_events"), cells.share("fan"), cells.text("state")
    return Sample(
        temperature_celsius=cells.number("temperature"),
        temperature_margin_celsius=cells.number("temperature_margin"),
        memory_temperature_celsius=cells.number("memory_temperature"),
        memory_total_bytes=cells.whole("memory_total", _MIB),
        memory_used_bytes=cells.whole("memory_used", _MIB),
        memory_free_bytes=cells.whole("memory_free", _MIB),
        memory_reserved_bytes=cells.whole("memory_reserved", _MIB),
        utilization_ratio=cells.share("utilization"),
        memory_utilization_ratio=cells.share("memory_utilization"),
        encoder_utilization_ratio=cells.share("encoder"),
        decoder_utilization_ratio=cells.share("decoder"),
        power_watts=cells.number("power"),
        power_limit_watts=cells.number("power_limit"),
        clocks_hertz=_clocks(cells),
        clock_events=None if events is None else clock_event_names(events),
        fan_speed_ratios=None if fan is None else (fan,),
        performance_state=_performance_state(state),
    )


def _health_of(cells: Cells) -> DeviceHealth:
    return DeviceHealth(
        clock_event_seconds=_numbers(cells, _CLOCK_EVENTS, _MICRO),
        ecc_errors=_ecc(cells),
        remapped_rows=_counts(cells, ("correctable", "uncorrectable")),
        row_remap_pending=cells.flag("remap_pending"),
        row_remap_failure=cells.flag("remap_failure"),
        retired_pages=_counts(cells, ("single_bit", "double_bit")),
        recovery_action=_recovery_action(cells.text("recovery_action")),
        pcie_link_generation=cells.whole("pcie_generation") or None,
        pcie_link_width=cells.whole("pcie_width") or None,
        mig_mode=_mig_mode(cells),
    )


def _mig_mode(cells: Cells) -> dict[str, bool] | None:
    told = {when: cells.flag(f"mig_{when}") for when in ("current", "pending")}
    return {when: mode for when, mode in told.items() if mode is not None} or None


def _ecc(cells: Cells) -> dict[str, dict[str, int]] | None:
    errors = {}
    for severity in _SEVERITIES:
        failures = len(cells.errors)
        told = {memory: cells.whole(f"{severity}_{memory}") for memory in ("dram", "sram")}
        known = {memory: count for memory, count in told.items() if count is not None}
        # A memory that could not be read this time is one all the same: the sum would count it twice.
        failed = len(cells.errors) > failures
        total = cells.whole(f"{severity}_total")
        if len(known) == len(told):
            errors[severity] = known
        elif total is not None and not failed:
            errors[severity] = {"all": total}
    return errors or None


def _numbers(cells: Cells, names: Sequence[str], factor: float) -> dict[str, float] | None:
    found = {name: cells.number(name, factor) for name in names}
    return {name: value for name, value in found.items() if value is not None} or None


def _counts(cells: Cells, names: Sequence[str]) -> dict[str, int] | None:
    found = {name: cells.whole(name) for name in names}
    return {name: value for name, value in found.items() if value is not None} or None


def _clocks(cells: Cells) -> dict[str, float] | None:
    return {
        name: value * _MEGA
        for name in CLOCK_DOMAINS
        if (value := cells.number(f"clock_{name}")) is not None
    } or None


def _performance_state(text: str | None) -> int | None:
    digits = (text or "").removeprefix("P")
    return int(digits) if digits.isdigit() and int(digits) <= 15 else None


def _recovery_action(text: str | None) -> str | None:
    if text is None:
        return None
    name = "_".join(text.lower().split())
    # Drivers differ in how they spell these two.
    name = {"gpu_reset": "reset", "node_reboot": "reboot"}.get(name, name)
    return name if name in RECOVERY_ACTIONS else UNKNOWN_RECOVERY_ACTION


def _together(one: ProcessUse, other: ProcessUse) -> ProcessUse:
    """Return a process that is listed twice, once for each MIG device that it uses, as one."""
    told = [use.memory_used_bytes for use in (one, other) if use.memory_used_bytes is not None]
    return replace(one, memory_used_bytes=sum(told) if told else None)


def _program(cells: Cells) -> str:
    # Some programs write their arguments into their own name: those are nobody's business.
    words = (cells.text("process") or "").split()
    return words[0].rpartition("/")[2] if words else ""
