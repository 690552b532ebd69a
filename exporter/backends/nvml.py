"""NVIDIA GPUs through libnvidia-ml.so.1 (the package nvidia-ml-py)."""

from __future__ import annotations

import contextlib
from typing import Any

import pynvml

from exporter.backends import _nvml_errors as codes
from exporter.backends._in_turn import open_in_turn
from exporter.backends._nvml_card import NvmlCard
from exporter.backends._nvml_device import Library
from exporter.backends._nvml_events import NvmlEvents
from exporter.backends.base import BackendOptions, Enumeration, Versions
from exporter.clock import Clock, SystemClock
from exporter.environment import Environment
from exporter.errors import BackendError


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
        """Initialise NVML and open every GPU, one after the other.

        Raises:
            BackendError: with the reason of the NVML code.
        """
        found = self.begin()
        try:
            return open_in_turn(found)
        except BackendError:
            self.close()
            raise

    def begin(self) -> Enumeration:
        """Initialise NVML and count the GPUs; each is to be opened by a thread of its own.

        Raises:
            BackendError: with the reason of the NVML code.
        """
        try:
            self._nvml.nvmlInit()
            self._initialised = True
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            self.close()
            raise codes.backend_error(error.value, str(error), self._environment) from error
        events = NvmlEvents(self._nvml, self._environment)
        cards = tuple(NvmlCard(self._library, events, index) for index in range(count))
        return Enumeration((), events=events, cards=cards, versions=self._versions)

    def has_stuck(self) -> bool:
        """It starts none: who is stuck in the driver is the caller itself."""
        return False

    def fingerprint(self) -> object:
        """Return what the kernel lists; NVML itself sees no change before it is opened again."""
        return (self._environment.kernel_driver(), self._environment.driver_gpus())

    def close(self) -> None:
        """Shut NVML down; what it says to that does not matter."""
        if self._initialised:
            self._initialised = False
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _versions(self) -> Versions:
        errors: list[str] = []
        driver = self._version("nvmlSystemGetDriverVersion", errors)
        number = self._version("nvmlSystemGetCudaDriverVersion", errors)
        cuda = "" if number is None else f"{number // 1000}.{number % 1000 // 10}"
        return Versions(str(driver or ""), cuda, tuple(errors))

    def _version(self, function: str, errors: list[str]) -> Any:
        try:
            return getattr(self._nvml, function)()
        except self._nvml.NVMLError as error:
            if error.value not in codes.NEVER:
                errors.append(codes.word(error.value))
            return None
        except UnicodeDecodeError:
            errors.append(codes.word(codes.UNKNOWN))
            return None
