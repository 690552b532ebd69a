"""Xid errors as NVML events."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exporter.backends import _nvml_errors as codes
from exporter.backends.base import XidEvent
from exporter.environment import Environment
from exporter.errors import ReadingError

_XID = 0x8
# How long a card waits for the event set, which another thread makes at the same time.
_SET_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Registered:
    """What came of registering a card.

    Attributes:
        watched: its Xid errors are told of.
        final: it is so for good: it is registered, or cannot be.
    """

    watched: bool = False
    final: bool = True
    errors: tuple[str, ...] = ()


class NvmlEvents:
    """One event set for all GPUs that can tell; `EventSource` of the backend contract.

    What happened before a card was registered is not told.
    """

    def __init__(self, nvml: Any, environment: Environment) -> None:
        self._nvml = nvml
        self._environment = environment
        self._set: Any = None
        self._tried = threading.Event()
        self._none = False
        self._registering = 0
        self._lock = threading.Lock()
        self._cards: dict[str, Any] = {}
        # Registered with a set that was given back.
        self._before: dict[str, Any] = {}

    def open(self) -> bool:
        """Make the event set, and register what one before it had; false when the driver has no events.

        Raises:
            BackendError: the driver is gone.
            ReadingError: it failed this time.
        """
        # One in which not every card could be registered again.
        self.close()
        try:
            made = self._nvml.nvmlEventSetCreate()
        except self._nvml.NVMLError as error:
            code = int(error.value)
            self._none = code in codes.NEVER
            self._tried.set()
            if self._none:
                return False
            raise self._failed(code, error) from error
        with self._lock:
            self._set = made
        self._tried.set()
        for uuid, handle in list(self._before.items()):
            self._again(uuid, handle)
        return True

    def register(self, uuid: str, handle: Any) -> Registered:
        """Listen to a card; called again for one that is listened to, nothing happens."""
        self._tried.wait(_SET_SECONDS)
        with self._lock:
            if uuid in self._cards or uuid in self._before:
                return Registered(watched=True)
            made = self._set
            if made is None:
                return Registered(final=self._none)
            self._registering += 1
        try:
            if not self._nvml.nvmlDeviceGetSupportedEventTypes(handle) & _XID:
                return Registered()
            self._nvml.nvmlDeviceRegisterEvents(handle, _XID, made)
        except self._nvml.NVMLError as error:
            # This card tells nothing: it has no counters then, rather than counters of zero.
            if error.value in codes.NEVER:
                return Registered()
            return Registered(final=False, errors=(codes.word(error.value),))
        finally:
            with self._lock:
                self._registering -= 1
        with self._lock:
            self._cards[uuid] = handle
        return Registered(watched=True)

    def wait(self, seconds: float) -> Sequence[XidEvent]:
        """Wait for one event; empty when none came in time.

        Raises:
            BackendError: the driver is gone.
            ReadingError: this wait failed.
        """
        try:
            data = self._nvml.nvmlEventSetWait_v2(self._set, round(seconds * 1000))
        except self._nvml.NVMLError as error:
            if error.value == codes.TIMEOUT:
                return ()
            raise self._failed(int(error.value), error) from error
        key = _key(data.device)
        with self._lock:
            uuid = next((uuid for uuid, card in self._cards.items() if _key(card) == key), None)
        if uuid is None or not int(data.eventType) & _XID:
            return ()
        return (XidEvent(uuid, int(data.eventData)),)

    def close(self) -> None:
        """Give the event set back; what the driver says to that does not matter."""
        with self._lock:
            given, self._set = self._set, None
            self._before, self._cards = self._before | self._cards, {}
            # What a call is going on with is not given back under it.
            in_use = self._registering > 0
        self._tried.clear()
        if given is None or in_use:
            return
        try:
            self._nvml.nvmlEventSetFree(given)
        except self._nvml.NVMLError:
            return

    def _again(self, uuid: str, handle: Any) -> None:
        try:
            self._nvml.nvmlDeviceRegisterEvents(handle, _XID, self._set)
        except self._nvml.NVMLError as error:
            raise self._failed(int(error.value), error) from error
        with self._lock:
            self._cards[uuid] = self._before.pop(uuid)

    def _failed(self, code: int, error: Any) -> Exception:
        if code in codes.BACKEND_LOST:
            return codes.backend_error(code, str(error), self._environment)
        return ReadingError(codes.word(code))


def _key(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value
