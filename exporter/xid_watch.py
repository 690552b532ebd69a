"""The Xid errors of each card, from whoever tells of them: the driver, the kernel log."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from exporter import state_file, xids
from exporter.complaints import Complaints
from exporter.errors import StorageError
from exporter.frames import XidFrame
from exporter.kernel_log import LogBatch
from exporter.kernel_xids import HeardXid, KernelXids
from exporter.readings import DeviceInfo
from exporter.xid_ledger import XidCount, XidLedger

_log = logging.getLogger(__name__)


class XidWatch:
    """Knows whose Xids are told and by whom, logs what is new and keeps the counts.

    Its owner guards it against other threads.
    """

    def __init__(
        self, ledger: XidLedger, kernel_log: KernelXids | None, complaints: Complaints
    ) -> None:
        """Count into `ledger`; without `kernel_log` what the driver tells counts alone."""
        self._ledger = ledger
        self._kernel_log = kernel_log
        self._complaints = complaints
        # Visible GPUs whose Xids the driver does not tell of.
        self._untold: set[str] = set()
        self._logged: set[str] = set()

    def told_by_driver(self, visible: Collection[str], watched: Iterable[str]) -> None:
        """Take of which of the visible GPUs (uuids) the driver tells."""
        self._untold = set(visible).difference(watched)
        for uuid in watched:
            self._ledger.watch(uuid)

    def know(self, cards: Iterable[DeviceInfo], visible: Collection[str]) -> None:
        """Take which cards there are, also those that are not visible now."""
        if self._kernel_log is not None:
            # The last one has the address: a card that is there, not the one that it replaced.
            self._heard(self._kernel_log.know(sorted(cards, key=lambda one: one.uuid in visible)))

    def take(self, frame: XidFrame) -> None:
        """Take one that the driver told of."""
        if self._ledger.saw(frame.uuid, frame.xid, frame.time):
            _tell(f"GPU {frame.uuid}", frame.xid)

    def take_log(self, batch: LogBatch, time: float, now: float) -> None:
        """Take what was read of the kernel log; `time` is epoch, `now` monotonic."""
        if self._kernel_log is None:
            return
        if batch.lost:
            self._complaints.count("kernel_log", "overrun", batch.lost)
        self._heard(self._kernel_log.take(batch, time, now))

    def log_unreadable(self, why: str) -> None:
        """Take that there is no kernel log: what the driver tells counts alone."""
        if self._kernel_log is not None:
            self._kernel_log.readable = False
        _log.info("%s", why)

    def take_logged(self) -> set[str]:
        """Return the uuids of the GPUs that the kernel log told of since the last call."""
        logged, self._logged = self._logged, set()
        return logged

    def of(self, uuid: str, now: float) -> tuple[XidCount, ...] | None:
        """Return the counts of a card at `now` (monotonic); None when nobody tells of them."""
        log = self._kernel_log
        if log is not None and log.is_awaited(now):
            # A count that lines of before are still missing in would grow as if they were new.
            return None
        if uuid in self._untold and not (log is not None and log.watches(uuid)):
            # What was counted before is not the count.
            return None
        return self._ledger.of(uuid)

    def save(self, patience: float = state_file.PATIENCE_SECONDS) -> None:
        """Write what is new, within `patience` seconds; a failure is counted, and tried again."""
        try:
            self._ledger.save(patience)
        except StorageError as error:
            self._complaints.count("xids", "storage")
            self._complaints.say("xids", str(error))

    def _heard(self, found: Iterable[HeardXid]) -> None:
        for one in found:
            if one.uuid:
                self._logged.add(one.uuid)
            else:
                self._complaints.count("kernel_log", "unknown_card")
            if one.is_news:
                place = "{:04x}:{:02x}:{:02x}".format(*one.address)
                _tell(f"GPU {one.uuid or f'at {place}, which the driver has not shown'}", one.xid)


def _tell(card: str, xid: int) -> None:
    row = xids.table().get(xid)
    meaning = "" if row is None else f": {row.meaning}: {row.action}"
    _log.warning("%s: Xid %d%s", card, xid, meaning)
