"""One GPU through NVML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from exporter.backends import _nvml_health, _nvml_links, _nvml_mig, _nvml_processes
from exporter.backends._nvml_buffers import Buffers
from exporter.backends._nvml_mig import memory_info
from exporter.backends._nvml_processes import read_processes
from exporter.backends._nvml_reader import Call, Reader
from exporter.backends.base import HealthResult, ProcessesResult, SampleResult
from exporter.clock import Clock
from exporter.environment import Environment
from exporter.errors import ReadingError
from exporter.readings import CLOCK_DOMAINS, DeviceInfo, Sample, clock_event_names

_MEMORY_TEMPERATURE_FIELD = 82
_ENERGY_FIELD = 83
_SAMPLE_FIELDS = (_MEMORY_TEMPERATURE_FIELD, _ENERGY_FIELD)
_TEMPERATURE_LIMITS = {"shutdown": 0, "slowdown": 1, "memory_max": 2, "gpu_max": 3}
_NVML_CLOCKS = dict(zip(CLOCK_DOMAINS, (0, 1, 2, 3), strict=True))


def _clock(domain: int) -> Call:
    return lambda nvml, handle: nvml.nvmlDeviceGetClockInfo(handle, domain)


def _max_clock(domain: int) -> Call:
    return lambda nvml, handle: nvml.nvmlDeviceGetMaxClockInfo(handle, domain)


def _temperature_limit(threshold: int) -> Call:
    return lambda nvml, handle: nvml.nvmlDeviceGetTemperatureThreshold(handle, threshold)


def _fans(nvml: Any, handle: Any) -> tuple[float, ...]:
    count = nvml.nvmlDeviceGetNumFans(handle)
    return tuple(nvml.nvmlDeviceGetFanSpeed_v2(handle, fan) / 100 for fan in range(count))


# Each reading with its spellings, newest first: an older driver lacks the newer ones.
_CALLS: Mapping[str, tuple[Call, ...]] = MappingProxyType(
    {
        "name": (lambda n, h: n.nvmlDeviceGetName(h),),
        "pci_bus_id": (lambda n, h: n.nvmlDeviceGetPciInfo(h).busId,),
        "vbios_version": (lambda n, h: n.nvmlDeviceGetVbiosVersion(h),),
        "memory": (
            memory_info,
            lambda n, h: n.nvmlDeviceGetMemoryInfo(h),
        ),
        "power_limit_default": (lambda n, h: n.nvmlDeviceGetPowerManagementDefaultLimit(h),),
        "power_limit_range": (lambda n, h: n.nvmlDeviceGetPowerManagementLimitConstraints(h),),
        "temperature": (
            lambda n, h: n.nvmlDeviceGetTemperatureV(h, n.NVML_TEMPERATURE_GPU),
            lambda n, h: n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU),
        ),
        "temperature_margin": (lambda n, h: n.nvmlDeviceGetMarginTemperature(h),),
        "encoder": (lambda n, h: n.nvmlDeviceGetEncoderUtilization(h)[0],),
        "decoder": (lambda n, h: n.nvmlDeviceGetDecoderUtilization(h)[0],),
        "utilization": (lambda n, h: n.nvmlDeviceGetUtilizationRates(h),),
        "power": (lambda n, h: n.nvmlDeviceGetPowerUsage(h),),
        "power_limit": (lambda n, h: n.nvmlDeviceGetPowerManagementLimit(h),),
        "energy": (lambda n, h: n.nvmlDeviceGetTotalEnergyConsumption(h),),
        "clock_events": (
            lambda n, h: n.nvmlDeviceGetCurrentClocksEventReasons(h),
            lambda n, h: n.nvmlDeviceGetCurrentClocksThrottleReasons(h),
        ),
        "performance_state": (
            lambda n, h: n.nvmlDeviceGetPerformanceState(h),
            lambda n, h: n.nvmlDeviceGetPowerState(h),
        ),
        "fans": (_fans,),
        **{f"clock_{name}": (_clock(number),) for name, number in _NVML_CLOCKS.items()},
        **{f"clock_max_{name}": (_max_clock(number),) for name, number in _NVML_CLOCKS.items()},
        **{
            f"temperature_limit_{name}": (_temperature_limit(number),)
            for name, number in _TEMPERATURE_LIMITS.items()
        },
        **_nvml_health.CALLS,
        **_nvml_links.CALLS,
        **_nvml_mig.CALLS,
        **_nvml_processes.CALLS,
    }
)


@dataclass(frozen=True, slots=True)
class Library:
    """The opened library, and what outlives the devices that were opened in it.

    Attributes:
        pcie_throughput: read it, which takes the driver 40 ms.
        buffers: by uuid.
    """

    nvml: Any
    environment: Environment
    clock: Clock
    pcie_throughput: bool = False
    buffers: dict[str, Buffers] = field(default_factory=dict)


class NvmlDevice:
    """One opened GPU; `Device` of the backend contract."""

    def __init__(self, library: Library, handle: Any, index: int) -> None:
        """Read what does not change.

        Raises:
            DeviceFault: the GPU is down already.
            nvml.NVMLError: it does not even give its uuid.
        """
        self.handle = handle
        self._library = library
        self._reader = Reader(library.nvml, handle, _CALLS, library.environment)
        self._facts: dict[str, Any] = {}
        self._untold: set[str] = set()
        self._info = self._describe(index, str(library.nvml.nvmlDeviceGetUUID(handle)))
        self.open_errors = self._reader.words()
        self._buffers = library.buffers.setdefault(self._info.uuid, Buffers())
        self._nvlinks = _nvml_links.NvLinks(self._reader, self._buffers.links)

    @property
    def info(self) -> DeviceInfo:
        """What was read when it was opened, or since."""
        return self._info

    @property
    def is_described(self) -> bool:
        """False while something that does not change could not be read yet."""
        return not self._untold

    def describe_again(self) -> tuple[str, ...]:
        """Read what could not be read when it was opened; one word for each failure.

        Raises:
            DeviceFault: the GPU is lost or wants a reset.
            BackendError: the driver is gone for all.
        """
        self._reader.begin()
        self._info = self._describe(self._info.index, self._info.uuid)
        return self._reader.words()

    def sample(self) -> SampleResult:
        """Read what changes all the time."""
        self._reader.begin()
        read = self._reader.read
        memory, utilization = read("memory"), read("utilization")
        events = read("clock_events")
        fields = self._reader.read_fields(_SAMPLE_FIELDS)
        now = self._library.clock.monotonic()
        sample = Sample(
            temperature_celsius=_scaled(read("temperature"), 1),
            temperature_margin_celsius=_scaled(read("temperature_margin"), 1),
            memory_temperature_celsius=fields.get(_MEMORY_TEMPERATURE_FIELD),
            memory_total_bytes=memory and int(memory.total),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_free_bytes=None if memory is None else int(memory.free),
            memory_reserved_bytes=_reserved(memory),
            utilization_ratio=None if utilization is None else _percent(utilization.gpu),
            memory_utilization_ratio=None if utilization is None else _percent(utilization.memory),
            encoder_utilization_ratio=_percent(read("encoder")),
            decoder_utilization_ratio=_percent(read("decoder")),
            power_watts=_scaled(read("power"), 1e-3),
            power_limit_watts=_scaled(read("power_limit"), 1e-3),
            energy_joules=self._energy(fields, now),
            clocks_hertz=_hertz("clock", read),
            clock_events=None if events is None else clock_event_names(events),
            fan_speed_ratios=read("fans"),
            performance_state=_performance_state(read("performance_state")),
        )
        spans = self._buffers.utilization(self._reader, now)
        self._reader.check()
        return SampleResult(sample, self._reader.words(), utilization=spans)

    def processes(self) -> ProcessesResult:
        """Read pid, memory and utilisation of each process.

        Raises:
            DeviceFault: the GPU is lost or wants a reset.
            ReadingError: only the lists cannot be read.
        """
        self._reader.begin()
        now = self._library.clock.monotonic()
        return read_processes(self._reader, self._buffers.processes, now)

    def health(self) -> HealthResult:
        """Read what changes seldom.

        Raises:
            DeviceFault: the GPU is lost or wants a reset.
            ReadingError: only this cannot be read.
        """
        self._reader.begin()
        health = _nvml_health.read_health(
            self._reader, self._nvlinks, pcie_throughput=self._library.pcie_throughput
        )
        if self._reader.failures and not self._reader.successes:
            raise ReadingError(self._reader.words()[0])
        return HealthResult(health, self._reader.words())

    def _describe(self, index: int | None, uuid: str) -> DeviceInfo:
        self._untold.clear()
        fact = self._fact
        memory = fact("memory")
        low, high = fact("power_limit_range") or (None, None)
        return DeviceInfo(
            index=index,
            uuid=uuid,
            name=str(fact("name") or ""),
            pci_bus_id=str(fact("pci_bus_id") or ""),
            vbios_version=str(fact("vbios_version") or ""),
            memory_total_bytes=memory and int(memory.total),
            power_limit_default_watts=_scaled(fact("power_limit_default"), 1e-3),
            power_limit_min_watts=_scaled(low, 1e-3),
            power_limit_max_watts=_scaled(high, 1e-3),
            pcie_link_generation_max=_nvml_links.link_number(fact("pcie_generation_max")),
            pcie_link_width_max=_nvml_links.link_number(fact("pcie_width_max")),
            clocks_max_hertz=_hertz("clock_max", fact) or {},
            temperature_limits_celsius=self._temperature_limits(),
        )

    def _fact(self, reading: str) -> Any:
        """Read what does not change, once; what fails is noted for another try."""
        if reading not in self._facts:
            value = self._reader.read(reading)
            if value is None and self._reader.supports(reading):
                self._untold.add(reading)
            else:
                self._facts[reading] = value
        return self._facts.get(reading)

    def _energy(self, fields: Mapping[int, float], now: float) -> float | None:
        """Return the card's own counter, or else what the driver's power samples sum up to."""
        millijoules = fields.get(_ENERGY_FIELD)
        if millijoules is None:
            millijoules = self._reader.read("energy")
        if millijoules is None and not self._reader.supports("energy"):
            return self._buffers.energy(self._reader, now)
        return _scaled(millijoules, 1e-3)

    def _temperature_limits(self) -> dict[str, float]:
        # Zero is how some drivers spell "no such limit".
        read = {name: self._fact(f"temperature_limit_{name}") for name in _TEMPERATURE_LIMITS}
        return {name: float(value) for name, value in read.items() if value}


def _hertz(prefix: str, read: Callable[[str], Any]) -> dict[str, float] | None:
    megahertz = {name: read(f"{prefix}_{name}") for name in CLOCK_DOMAINS}
    clocks = {name: value * 1e6 for name, value in megahertz.items() if value is not None}
    return clocks or None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else round(value * factor, 3)


def _percent(value: float | None) -> float | None:
    return value / 100 if value is not None and 0 <= value <= 100 else None


def _performance_state(value: int | None) -> int | None:
    return value if value is not None and 0 <= value <= 15 else None


def _reserved(memory: Any) -> int | None:
    reserved = getattr(memory, "reserved", None)
    return None if reserved is None else int(reserved)
