"""NVIDIA GPUs through libnvidia-ml.so.1 (the package nvidia-ml-py)."""

from __future__ import annotations

import contextlib
from typing import Any

import pynvml

from exporter.backends import _nvml_errors as codes
from exporter.backends._nvml_device import Library, NvmlDevice
from exporter.backends._nvml_events import NvmlEvents
from exporter.backends.base import BackendOptions, Enumeration
from exporter.clock import Clock, SystemClock
from exporter.environment import Environment
from exporter.errors import DeviceFault
from exporter.frames import FailedDevice


def create(options: BackendOptions) -> NvmlBackend:
    """Make the backend; the library is loaded when it is opened."""
    return NvmlBackend(
        pynvml, Environment(), SystemClock(), pcie_throughput=options.pcie_throughput
    )


class NvmlBackend:
    """All GPUs of the NVIDIA driver."""

    name = "nvml"

    def __init__(
        self, nvml: Any, environment: Environment, clock: Clock, *, pcie_throughput: bool = False
    ) -> None:
        self._nvml = nvml
        self._environment = environment
        self._library = Library(nvml, environment, clock, pcie_throughput)
        self._initialised = False

    def open(self) -> Enumeration:
        """Initialise NVML and open every GPU.

        Raises:
            BackendError: with the reason of the NVML code.
        """
        try:
            self._nvml.nvmlInit()
            self._initialised = True
            devices, failed = self._devices(self._nvml.nvmlDeviceGetCount())
            events = self._events(devices)
            watched = () if events is None else events.uuids
            return Enumeration(devices, failed, *self._versions(), events, watched)
        except self._nvml.NVMLError as error:
            self.close()
            raise codes.backend_error(error.value, str(error), self._environment) from error

    def fingerprint(self) -> object:
        """Return what the kernel lists; NVML itself sees no change before it is opened again."""
        return (self._environment.kernel_driver(), self._environment.driver_gpus())

    def close(self) -> None:
        """Shut NVML down; what it says to that does not matter."""
        if self._initialised:
            self._initialised = False
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _devices(self, count: int) -> tuple[tuple[NvmlDevice, ...], tuple[FailedDevice, ...]]:
        devices, failed = [], []
        for index in range(count):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                devices.append(NvmlDevice(self._library, handle, index))
            except DeviceFault as fault:
                failed.append(FailedDevice(index, fault.reason, str(fault)))
            except self._nvml.NVMLError as error:
                if error.value in codes.BACKEND_LOST:
                    raise
                reason = codes.device_fault(error.value)
                failed.append(FailedDevice(index, reason, str(error)))
        return tuple(devices), tuple(failed)

    def _events(self, devices: tuple[NvmlDevice, ...]) -> NvmlEvents | None:
        handles = {device.info.uuid: device.handle for device in devices}
        try:
            events = NvmlEvents(self._nvml, handles, self._environment)
        except self._nvml.NVMLError:
            return None
        if events.uuids:
            return events
        events.close()
        return None

    def _versions(self) -> tuple[str, str]:
        driver, cuda = "", ""
        with contextlib.suppress(self._nvml.NVMLError):
            driver = str(self._nvml.nvmlSystemGetDriverVersion())
        with contextlib.suppress(self._nvml.NVMLError):
            number = self._nvml.nvmlSystemGetCudaDriverVersion()
            cuda = f"{number // 1000}.{number % 1000 // 10}"
        return driver, cuda
