"""Which lines of the kernel log count, and for which card.

A line is counted once: the ledger remembers up to where the log of this boot was read. Where it
does not know that (the log is read for the first time, or nothing is kept over a restart), old
lines do not count, because `increase()` would take them for new ones. The exception is the very
first start over a directory: it begins with all that the kernel still has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from exporter.kernel_log import LogBatch, LoggedXid, PciAddress, pci_address
from exporter.readings import DeviceInfo
from exporter.xid_ledger import LogPosition, XidLedger

# The rules look back so far: what is older must not appear as an increase.
_RECENT_SECONDS = 300.0
# The kernel's clock drifts against ours, and the driver tells a moment later than the kernel.
_SAME_SECONDS = 5.0
_WAIT_SECONDS = 5.0
_PARKED_ADDRESSES = 64
_PARKED_LINES = 64


@dataclass(frozen=True, slots=True)
class HeardXid:
    """One that was counted, and whether it is worth a line; without a uuid its card is not known."""

    uuid: str
    xid: int
    address: PciAddress
    is_news: bool


@dataclass(slots=True)
class _Start:
    """From where on lines of before count."""

    sequence: int = -1
    time: float = 0.0


@dataclass(slots=True)
class KernelXids:
    """The kernel log's part in the counts; its owner guards it against other threads.

    Attributes:
        boot: id of this boot; empty when it is not known.
        readable: None until it is known whether the log can be read.
    """

    ledger: XidLedger
    boot: str
    begun_at: float  # monotonic
    readable: bool | None = None
    _caught_up: bool = False
    _start: _Start | None = None
    _cards: dict[PciAddress, str] = field(default_factory=dict)
    _parked: dict[PciAddress, deque[LoggedXid]] = field(default_factory=dict)

    def is_awaited(self, now: float) -> bool:
        """Tell whether lines of before may still come: until then no count is complete."""
        settled = self._caught_up or self.readable is False
        return not settled and now < self.begun_at + _WAIT_SECONDS

    def watches(self, uuid: str) -> bool:
        """Tell whether the log would tell of a card."""
        return bool(self.readable) and uuid in self._cards.values()

    def know(self, cards: Iterable[DeviceInfo]) -> list[HeardXid]:
        """Take which cards there are; what was logged of them before they were known counts now."""
        found = {pci_address(info.pci_bus_id): info.uuid for info in cards}
        self._cards |= {address: uuid for address, uuid in found.items() if address is not None}
        if self.readable:
            for uuid in self._cards.values():
                self.ledger.watch(uuid)
        known = [address for address in self._parked if address in self._cards]
        lines = [line for address in known for line in self._parked.pop(address)]
        return [heard for line in lines for heard in self._count(line)]

    def take(self, batch: LogBatch, time: float, now: float) -> list[HeardXid]:
        """Take what was read; `time` is epoch, `now` monotonic."""
        if self._start is None:
            self._start = self._begin(time)
            self.readable = True
            self.know(())
        start = self._start
        if batch.history and not self.is_awaited(now):
            # Counts are shown already: what is old would look new.
            start = _Start(start.sequence, max(start.time, time - _RECENT_SECONDS))
        lines = [line for line in batch.xids if not batch.history or self._is_new(line, start)]
        heard = [one for line in lines for one in self._count(line)]
        self._caught_up = self._caught_up or batch.caught_up
        if self.boot and batch.sequence is not None and (batch.xids or batch.caught_up):
            self.ledger.log_read_to(LogPosition(self.boot, batch.sequence))
        return heard

    def _begin(self, time: float) -> _Start:
        before = self.ledger.log_position
        if before is not None and self.boot:
            return _Start(before.sequence if before.boot == self.boot else -1)
        return _Start() if self.ledger.is_first else _Start(time=time - _RECENT_SECONDS)

    def _is_new(self, line: LoggedXid, start: _Start) -> bool:
        if line.sequence <= start.sequence or line.time < start.time:
            return False
        # The driver told of it before we were stopped.
        last = self.ledger.last_before(self._cards.get(line.address, ""), line.xid)
        return last is None or line.time > last + _SAME_SECONDS

    def _count(self, line: LoggedXid) -> Iterator[HeardXid]:
        uuid = self._cards.get(line.address)
        if uuid is not None:
            news = self.ledger.saw_in_log(uuid, line.xid, line.time)
            if news is not None:
                yield HeardXid(uuid, line.xid, line.address, news)
            return
        if line.address in self._parked or len(self._parked) < _PARKED_ADDRESSES:
            parked = self._parked.setdefault(line.address, deque(maxlen=_PARKED_LINES))
            parked.append(line)
            yield HeardXid("", line.xid, line.address, len(parked) == 1)
