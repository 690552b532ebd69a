"""Counts Xid errors of each card from zero; with a directory the counts survive a restart."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from exporter import state_file
from exporter.errors import StorageError

FILE_NAME = "xids.json"
_QUIET_SECONDS = 60.0
# The driver and the kernel log tell of the same error; a hung driver tells late.
_SAME_SECONDS = 30.0
_UNPAIRED_LIMIT = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class XidCount:
    """How often one Xid was seen on one card.

    Attributes:
        last_at: when it was seen last (epoch); None when never.
    """

    xid: int
    count: int = 0
    last_at: float | None = None


@dataclass(frozen=True, slots=True)
class LogPosition:
    """Up to which record (its sequence number) the kernel log of which boot was counted."""

    boot: str
    sequence: int


class _Source(Enum):
    DRIVER = "driver"
    LOG = "log"


class XidLedger:
    """The counts of all cards whose Xids are or were watched."""

    def __init__(self, directory: Path | None, from_zero: Iterable[int]) -> None:
        """Read what was counted before; a file that is damaged is put aside.

        Args:
            directory: None keeps the counts in memory.
            from_zero: codes that each card has a count of from the beginning, so that the first
                one is seen as an increase.

        Raises:
            StorageError: the file cannot be read.
        """
        self._path = None if directory is None else directory / FILE_NAME
        self._from_zero = tuple(from_zero)
        self._counts: dict[str, dict[int, XidCount]] = {}
        self._position: LogPosition | None = None
        self._is_first = False
        self._unpaired: dict[tuple[str, int], dict[_Source, deque[float]]] = {}
        self._unsaved = False
        if self._path is not None:
            text = state_file.read(self._path)
            # Written in any case: the next start is not the first.
            self._is_first = self._unsaved = text is None
            self._counts, self._position = _load(self._path, text)
        self._before: Mapping[str, Mapping[int, XidCount]] = {
            uuid: dict(counts) for uuid, counts in self._counts.items()
        }

    @property
    def is_first(self) -> bool:
        """Whether nobody ever counted in this directory; false without one."""
        return self._is_first

    @property
    def log_position(self) -> LogPosition | None:
        """Up to where the kernel log is in the counts; None when it never was."""
        return self._position

    def last_before(self, uuid: str, xid: int) -> float | None:
        """When it was seen last before this start (epoch)."""
        known = self._before.get(uuid, {}).get(xid)
        return None if known is None else known.last_at

    def watch(self, uuid: str) -> None:
        """Begin to count for a card, from zero or from what is known."""
        counts = self._counts.setdefault(uuid, {})
        for xid in self._from_zero:
            counts.setdefault(xid, XidCount(xid))

    def saw(self, uuid: str, xid: int, time: float) -> bool | None:
        """Count one that the driver told of (epoch seconds).

        Returns:
            True when there was none like it in the last minute; None when the kernel log had told
            of it already.
        """
        return self._saw(_Source.DRIVER, uuid, xid, time)

    def saw_in_log(self, uuid: str, xid: int, time: float) -> bool | None:
        """Count one of the kernel log; None when the driver had told of it already."""
        return self._saw(_Source.LOG, uuid, xid, time)

    def log_read_to(self, position: LogPosition) -> None:
        """Remember, with the counts, up to where the kernel log is in them."""
        self._unsaved = self._unsaved or position != self._position
        self._position = position

    def of(self, uuid: str) -> tuple[XidCount, ...] | None:
        """Return the counts of a card by ascending code; None when it was never watched."""
        counts = self._counts.get(uuid)
        return None if counts is None else tuple(counts[xid] for xid in sorted(counts))

    def save(self, patience: float = state_file.PATIENCE_SECONDS) -> None:
        """Write what is new, within `patience` seconds.

        Raises:
            StorageError: it could not be written; it is tried again next time.
        """
        if self._path is None or not self._unsaved:
            return
        body: dict[str, Any] = {
            "version": 1,
            "xids": {
                uuid: {
                    one.xid: {"count": one.count, "last_at": one.last_at}
                    for one in counts.values()
                    if one.count
                }
                for uuid, counts in self._counts.items()
            },
        }
        if self._position is not None:
            body["kernel_log"] = {
                "boot": self._position.boot,
                "sequence": self._position.sequence,
            }
        state_file.write(self._path, body, patience)
        self._unsaved = False

    def _saw(self, source: _Source, uuid: str, xid: int, time: float) -> bool | None:
        if self._is_echo(source, uuid, xid, time):
            return None
        before = self._counts.setdefault(uuid, {}).get(xid, XidCount(xid))
        self._counts[uuid][xid] = XidCount(xid, before.count + 1, max(time, before.last_at or 0.0))
        self._unsaved = True
        return before.last_at is None or time - before.last_at > _QUIET_SECONDS

    def _is_echo(self, source: _Source, uuid: str, xid: int, time: float) -> bool:
        """Pair it with one that the other source told of; so of each the greater number counts."""
        unpaired = self._unpaired.setdefault(
            (uuid, xid), {one: deque(maxlen=_UNPAIRED_LIMIT) for one in _Source}
        )
        (other,) = (unpaired[one] for one in _Source if one is not source)
        while other:
            if abs(time - other.popleft()) <= _SAME_SECONDS:
                return True
        unpaired[source].append(time)
        return False


def _load(
    path: Path, text: str | None
) -> tuple[dict[str, dict[int, XidCount]], LogPosition | None]:
    if text is None:
        return {}, None
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        body = json.loads(text)
        xids: dict[str, dict[str, Any]] = body["xids"]
        counts = {
            uuid: {int(xid): _count(int(xid), one) for xid, one in by_xid.items()}
            for uuid, by_xid in xids.items()
        }
        read = body.get("kernel_log")
        return counts, None if read is None else _position(read)
    aside = path.with_suffix(".damaged")
    _log.error("%s is damaged: Xids are counted from zero, and it is kept as %s", path, aside)
    try:
        path.replace(aside)
    except OSError as error:
        raise StorageError(f"cannot put {path} aside: {error.strerror}") from error
    return {}, None


def _count(xid: int, body: dict[str, Any]) -> XidCount:
    return XidCount(xid, int(body["count"]), float(body["last_at"]))


def _position(body: dict[str, Any]) -> LogPosition:
    return LogPosition(str(body["boot"]), int(body["sequence"]))
