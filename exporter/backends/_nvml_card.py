"""A GPU that NVML counts, until it is opened and has told what it can."""

from __future__ import annotations

from exporter.backends import _nvml_errors as codes
from exporter.backends._nvml_device import Library, NvmlDevice
from exporter.backends._nvml_events import NvmlEvents
from exporter.backends.base import Opened
from exporter.errors import DeviceFault
from exporter.readings import FaultReason


class NvmlCard:
    """`Card` of the backend contract."""

    def __init__(self, library: Library, events: NvmlEvents, index: int) -> None:
        self._library = library
        self._events = events
        self._index = index
        self._device: NvmlDevice | None = None

    @property
    def index(self) -> int:
        """Its NVML index."""
        return self._index

    def open(self) -> Opened:
        """Open it and register it for Xid errors; later only what failed is asked for again.

        Raises:
            DeviceFault: it has no handle, no uuid, or is down.
            BackendError: the driver is gone for all.
        """
        library = self._library
        try:
            if self._device is None:
                handle = library.nvml.nvmlDeviceGetHandleByIndex(self._index)
                self._device = NvmlDevice(library, handle, self._index)
                errors = self._device.open_errors
            else:
                errors = self._device.describe_again()
        except library.nvml.NVMLError as error:
            if error.value in codes.BACKEND_LOST:
                raise codes.backend_error(error.value, str(error), library.environment) from error
            raise DeviceFault(codes.device_fault(error.value), str(error)) from error
        except UnicodeDecodeError as error:
            # The binding's: a card that is broken may not even know its own uuid.
            message = f"what it says is no text: {error}"
            raise DeviceFault(FaultReason.UNKNOWN, message) from error
        device = self._device
        registered = self._events.register(device.info.uuid, device.handle)
        return Opened(
            device,
            watched=registered.watched,
            errors=errors + registered.errors,
            complete=device.is_described and registered.final,
        )
