"""The GPU of a Jetson, from the kernel's files: NVML says little there, or makes it up.

Only a Thor is asked through NVML, and only for the utilisation, for which it has no file.
"""

from __future__ import annotations

import re
from pathlib import Path

import pynvml

from exporter.backends import _jetson_files as files
from exporter.backends._sysfs import Tree
from exporter.backends._thor_nvml import ThorUtilization
from exporter.backends.base import (
    BackendOptions,
    Enumeration,
    HealthResult,
    ProcessesResult,
    SampleResult,
)
from exporter.clock import SystemClock
from exporter.environment import Environment
from exporter.errors import BackendError, DeviceFault
from exporter.readings import (
    BackendReason,
    DeviceHealth,
    DeviceInfo,
    FaultReason,
    ProcessUse,
    Sample,
)

_CLIENTS = "sys/kernel/debug/nvmap/iovmm/clients"
_CLIENT = re.compile(r"^user\s+(\S+)\s+(\d+)\s+(\d+)K\s*$", re.MULTILINE)
_MEMORY = re.compile(r"^(\w+):\s+(\d+) kB$", re.MULTILINE)
_KIB = 1024
_FULL_LOAD = 1000
_FULL_DUTY = 255
# What an offline sensor says on some kernels is far outside.
_SENSIBLE_CELSIUS = (-40.0, 150.0)


def create(options: BackendOptions) -> JetsonBackend:  # noqa: ARG001  the contract's signature
    """Make the backend."""
    return JetsonBackend(Path("/"), ThorUtilization(pynvml, SystemClock()))


class JetsonDevice:
    """The one GPU; `Device` of the backend contract."""

    def __init__(
        self, tree: Tree, found: files.Files, driver: ThorUtilization | None = None
    ) -> None:
        """Read the files that were `found`; `driver` tells the utilisation where no file does."""
        self._tree = tree
        self._files = found
        self._driver = driver
        top = self._clock("max_freq")
        available = self._text("available_frequencies") or ""
        hertz = [float(word) for word in available.split() if word.isdigit()]
        self._info = DeviceInfo(
            index=0,
            uuid=files.pseudo_uuid(tree),
            name=tree.text("proc/device-tree/model") or "NVIDIA Jetson",
            memory_total_bytes=self._memory().get("MemTotal"),
            # What the hardware can, where it is told: max_freq is what somebody set.
            clocks_max_hertz={"graphics": max(hertz)} if hertz else top or {},
            temperature_limits_celsius=files.limits(tree, found),
        )

    @property
    def info(self) -> DeviceInfo:
        """What was read when it was opened."""
        return self._info

    def sample(self) -> SampleResult:
        """Read what changes all the time.

        Memory is the host's: both use the same.

        Raises:
            DeviceFault: the kernel has no GPU any more, or none of its files says anything.
        """
        temperature, clocks = self._temperature(), self._clock("cur_freq")
        load = self._number(self._files.load)
        if temperature is None and clocks is None and load is None:
            gone = self._files.devfreq is not None and not self._tree.exists(self._files.devfreq)
            reason = FaultReason.LOST if gone else FaultReason.UNKNOWN
            raise DeviceFault(reason, "no file of the GPU can be read")
        memory = self._memory()
        total, available = memory.get("MemTotal"), memory.get("MemAvailable")
        duty = self._number(self._files.fan)
        sample = Sample(
            temperature_celsius=temperature,
            memory_total_bytes=total,
            memory_used_bytes=None if total is None or available is None else total - available,
            memory_free_bytes=available,
            utilization_ratio=self._utilization(load),
            power_watts=self._power(),
            clocks_hertz=clocks,
            fan_speed_ratios=None if (fan := _ratio(duty, _FULL_DUTY)) is None else (fan,),
        )
        return SampleResult(sample)

    def processes(self) -> ProcessesResult:
        """Read who has memory mapped for the GPU; None without access to debugfs (root)."""
        text = self._tree.text(_CLIENTS)
        if text is None:
            return ProcessesResult(None)
        found = (
            ProcessUse(int(pid), memory_used_bytes=int(kibibytes) * _KIB)
            for _, pid, kibibytes in _CLIENT.findall(text)
        )
        return ProcessesResult(tuple(found))

    def health(self) -> HealthResult:
        """Return an empty one: there are no such readings in these files."""
        return HealthResult(DeviceHealth())

    def _utilization(self, load: int | None) -> float | None:
        if self._driver is not None and self._files.load is None:
            return self._driver.read()
        return _ratio(load, _FULL_LOAD)

    def _temperature(self) -> float | None:
        for zone in self._files.zones:
            millidegrees = self._tree.number(f"{zone}/temp")
            if millidegrees is not None:
                celsius = millidegrees / 1000
                low, high = _SENSIBLE_CELSIUS
                if low <= celsius <= high:
                    return celsius
        return None

    def _power(self) -> float | None:
        if self._files.rail is None:
            return None
        millivolts, milliamperes = map(self._tree.number, self._files.rail)
        if millivolts is None or milliamperes is None:
            return None
        return round(millivolts * milliamperes * 1e-6, 3)

    def _clock(self, file: str) -> dict[str, float] | None:
        try:
            return {"graphics": float(self._text(file) or "")}
        except ValueError:
            return None

    def _text(self, file: str) -> str | None:
        folder = self._files.devfreq
        return None if folder is None else self._tree.text(f"{folder}/{file}")

    def _number(self, path: str | None) -> int | None:
        return None if path is None else self._tree.number(path)

    def _memory(self) -> dict[str, int]:
        text = self._tree.text("proc/meminfo") or ""
        return {name: int(number) * _KIB for name, number in _MEMORY.findall(text)}


class JetsonBackend:
    """The integrated GPU of a Tegra."""

    name = "jetson"

    def __init__(self, root: Path, driver: ThorUtilization | None = None) -> None:
        """Read below `root`, which is `/` but in tests; a Thor's utilisation comes from `driver`."""
        self._driver = driver
        self._environment = Environment(root)
        self._tree = Tree(root)

    def open(self) -> Enumeration:
        """Find the files of the GPU.

        Raises:
            BackendError: this is no Jetson, or its kernel has no GPU.
        """
        if not self._environment.is_tegra():
            raise BackendError(
                BackendReason.DRIVER_NOT_LOADED, "this is no Jetson: use --backend=auto"
            )
        found = files.find(self._tree)
        if found.devfreq is None and found.load is None:
            raise BackendError(
                BackendReason.DRIVER_NOT_LOADED,
                "the kernel shows no GPU below /sys: load its driver (modprobe nvgpu), or mount "
                "/sys into the container",
            )
        driver = self._driver if files.is_thor(found) else None
        device = JetsonDevice(self._tree, found, driver)
        return Enumeration((device,), driver_version=files.release(self._tree))

    def fingerprint(self) -> object:
        """Return the GPU that the kernel lists."""
        found = files.find(self._tree)
        return (found.devfreq, found.load)

    def close(self) -> None:
        """Let go of the driver, where it was asked."""
        if self._driver is not None:
            self._driver.close()


def _ratio(value: int | None, full: int) -> float | None:
    return None if value is None or not 0 <= value <= full else value / full
