"""Everything that this package raises on purpose."""

from __future__ import annotations

from exporter.readings import BackendReason, FaultReason


class ExporterError(Exception):
    """The root: a message for a person that says what to do."""


class ConfigError(ExporterError):
    """A flag, an environment variable or the configuration file is not usable."""


class StorageError(ExporterError):
    """The state directory cannot be read or written."""


class ReleaseError(ExporterError):
    """The driver could not be let go, and the GPUs are read on."""


class CaptureError(ExporterError):
    """A capture cannot be made, or a file is none that can be replayed."""


class EngineError(ExporterError):
    """A container engine gave no usable answer."""


class FrameError(ExporterError):
    """A line from the worker is not a frame."""


class ReadingError(ExporterError):
    """One collection of one GPU failed; the GPU itself may be well."""


class BackendError(ExporterError):
    """The way to all GPUs is closed: no library, no driver, no permission.

    Attributes:
        reason: what `gpu_exporter_backend_fault` says.
    """

    def __init__(self, reason: BackendReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class DeviceFault(ExporterError):  # noqa: N818  a fault of the device, not an error of ours
    """One GPU does not answer; it says nothing about the others.

    Attributes:
        reason: what `gpu_fault` says.
    """

    def __init__(self, reason: FaultReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
