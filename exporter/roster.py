"""Which GPUs there are, while they are being opened and after."""

from __future__ import annotations

import threading
from collections.abc import Callable

from exporter.backends.base import Device, Enumeration, Opened, Versions
from exporter.clock import Clock
from exporter.errors import BackendError
from exporter.frames import BackendFrame, DevicesFrame, FailedDevice, Frame
from exporter.readings import FaultReason


class Roster:
    """Announces what was found at each change of it; called by the thread of each card.

    A card that has not told for `patience` seconds is announced as one that does not answer, until it does.
    """

    def __init__(
        self,
        backend: str,
        found: Enumeration,
        emit: Callable[[Frame], None],
        clock: Clock,
        started: float,
        patience: float,
    ) -> None:
        self._backend = backend
        self._found = found
        self._emit = emit
        self._clock = clock
        self.started = started
        self._patience = patience
        self._lock = threading.Lock()
        self._opening = {card.index for card in found.cards}
        self._opened: dict[int, Opened] = {}
        self._failed: dict[int, FailedDevice] = {one.index: one for one in found.failed}
        self._errors = [str(one.reason) for one in found.failed]
        self._late = self._gone = False
        self._took: float | None = None

    def begin(self) -> None:
        """Announce what needs no opening."""
        if not self._opening:
            with self._lock:
                self._announce()

    def opened(self, index: int, opened: Opened) -> None:
        """Take a card that was opened, or told more."""
        with self._lock:
            self._opening.discard(index)
            self._failed.pop(index, None)
            self._errors += opened.errors
            self._opened[index] = opened
            self._announce()

    def failed(self, failed: FailedDevice) -> None:
        """Take a card that could not be opened."""
        with self._lock:
            self._opening.discard(failed.index)
            self._errors.append(str(failed.reason))
            self._failed[failed.index] = failed
            self._announce()

    def told(self, versions: Versions) -> None:
        """Take what the driver calls itself; that it is gone stays so."""
        if not (versions.driver or versions.cuda):
            return
        with self._lock:
            if not self._gone:
                driver, cuda = versions.driver, versions.cuda
                self._emit(
                    BackendFrame(self._backend, up=True, driver_version=driver, cuda_version=cuda)
                )

    def gone(self, index: int, error: BackendError) -> None:
        """Take that a card found the whole driver gone when it was opened."""
        with self._lock:
            self._opening.discard(index)
            if not self._gone:
                self._gone = True
                message = str(error)
                self._emit(
                    BackendFrame(self._backend, up=False, reason=error.reason, message=message)
                )

    def is_gone(self) -> bool:
        """Tell whether a card found the whole driver gone, and so it was announced."""
        return self._gone

    def look(self) -> None:
        """Announce the cards that take too long, once."""
        with self._lock:
            late = self._clock.monotonic() >= self.started + self._patience
            if self._opening and late and not self._late:
                self._late = True
                self._errors += [str(FaultReason.TIMEOUT)] * len(self._opening)
                self._announce()

    def opening(self) -> bool:
        """Tell whether a driver call that opens a card has not come back."""
        return bool(self._opening)

    def blind(self) -> bool:
        """Tell whether none is open and some are still being opened."""
        with self._lock:
            return bool(self._opening) and not self._opened and not self._found.devices

    def present(self) -> set[str]:
        """The uuids of those that are open."""
        with self._lock:
            return {device.info.uuid for device in self._devices()}

    def incomplete(self, seen: set[str]) -> bool:
        """Tell whether one failed, or one of `seen` is not there; who is being opened may be it."""
        if self._failed or self._gone:
            return True
        return not self._opening and self.present() != seen

    def _devices(self) -> list[Device]:
        return [
            *self._found.devices,
            *(self._opened[index].device for index in sorted(self._opened)),
        ]

    def _announce(self) -> None:
        if self._gone:
            return
        took = self._clock.monotonic() - self.started
        if not self._opening and self._took is None:
            self._took = took
        overdue = sorted(self._opening) if self._late else []
        failed = self._failed | {index: _late(index) for index in overdue}
        watched = [one.device.info.uuid for one in self._opened.values() if one.watched]
        errors, self._errors = self._errors, []
        self._emit(
            DevicesFrame(
                tuple(device.info for device in self._devices()),
                tuple(failed[index] for index in sorted(failed)),
                took if self._took is None else self._took,
                (*self._found.watched, *watched),
                () if self._late else tuple(sorted(self._opening)),
                tuple(errors),
            )
        )


def _late(index: int) -> FailedDevice:
    message = "a driver call that opens it has not come back"
    return FailedDevice(index, FaultReason.TIMEOUT, message)
