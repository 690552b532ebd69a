"""Opens one GPU in the thread that is to read it, and asks again for what it could not tell then."""

from __future__ import annotations

from exporter.backends.base import Card, Device, Opened
from exporter.clock import Clock
from exporter.errors import BackendError, DeviceFault
from exporter.frames import FailedDevice
from exporter.readings import FaultReason
from exporter.roster import Roster


class Retry:
    """When to try again: after pauses that double, and not for ever."""

    TRIES = 20

    def __init__(self, clock: Clock, pause: float, limit: float) -> None:
        """Begin with `pause` seconds, and never pause for longer than `limit`."""
        self._clock = clock
        self._pause = pause
        self._limit = limit
        self._left = self.TRIES
        self._at = float("inf")

    def again(self) -> None:
        """Note that something failed."""
        self._left -= 1
        self._at = self._clock.monotonic() + self._pause if self._left > 0 else float("inf")
        self._pause = min(self._pause * 2, self._limit)

    def done(self) -> None:
        """Note that there is nothing left to try."""
        self._at = float("inf")

    def is_over(self) -> bool:
        """Tell whether it is never time again."""
        return self._at == float("inf")

    def is_due(self) -> bool:
        """Tell whether it is time."""
        return self._clock.monotonic() >= self._at


class CardOpener:
    """The opening of one card; only its own thread calls it."""

    def __init__(self, card: Card, roster: Roster, retry: Retry) -> None:
        self._card = card
        self._roster = roster
        self._retry = retry

    @property
    def index(self) -> int:
        """The place of the card among those that the driver counts."""
        return self._card.index

    def open(self) -> Device | None:
        """Open the card and announce it; None, and announced too, when it does not open.

        Raises:
            BackendError: the driver is gone for all.
        """
        try:
            opened = self._card.open()
        except DeviceFault as fault:
            self._roster.failed(FailedDevice(self.index, fault.reason, str(fault)))
            return None
        except BackendError as error:
            self._roster.gone(self.index, error)
            raise
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            self._roster.failed(FailedDevice(self.index, FaultReason.UNKNOWN, message))
            raise
        self._take(opened)
        return opened.device

    def is_due(self) -> bool:
        """Tell whether something that failed is worth another try now."""
        return self._retry.is_due()

    def ask_again(self) -> None:
        """Read what failed before.

        Raises:
            DeviceFault, BackendError: as `Card.open`.
        """
        self._retry.again()
        self._take(self._card.open(), again=False)

    def _take(self, opened: Opened, *, again: bool = True) -> None:
        if opened.complete:
            self._retry.done()
        elif again:
            self._retry.again()
        self._roster.opened(self.index, opened)
