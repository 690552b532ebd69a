"""The contract of a server's log, as its process manager keeps it: read in pages, never followed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

PAGE_BYTES = 256 * 1024
"""So much is read at once; a log that grows faster than it is read is skipped in parts."""

LONGEST_LINE = 2000
"""Characters of a line that are looked at."""


@dataclass(frozen=True)
class LogLine:
    """One line, and when it was written (Unix seconds; None where the log does not say)."""

    text: str
    at: float | None = None


@dataclass(frozen=True)
class LogPage:
    """What was read. `position` is where the next page begins, as JSON values.

    `more`: there is more to read already. `skipped`: some of it was left out, for it was too much.
    """

    lines: tuple[LogLine, ...]
    position: Mapping[str, Any] = field(default_factory=dict)
    more: bool = False
    skipped: bool = False


class ServerLog(Protocol):
    """One server's log; `where` says to a person which."""

    where: str

    def read(self, position: Mapping[str, Any], since: float) -> LogPage:
        """The lines after `position`, oldest first, at most a page of them.

        Args:
            position: Where an earlier page ended; empty for the first look.
            since: Unix seconds; of a log with times nothing older. One without begins at its end
                on the first look.

        Raises:
            ManagerError: it cannot be read; the message says why.
        """


@runtime_checkable
class Logged(Protocol):
    """A process manager that may know where its server's log is."""

    def log(self) -> ServerLog | None:
        """The log; None where the manager keeps none that can be read."""


def whole_lines(data: bytes) -> tuple[tuple[LogLine, ...], int]:
    """The whole lines in `data`, and how many bytes they are; the rest is not written yet."""
    end = data.rfind(b"\n") + 1
    if not end and len(data) >= PAGE_BYTES:
        # One line as long as a page: it is passed over, or nothing behind it would ever be seen.
        end = len(data)
    lines = data[:end].decode("utf-8", "replace").split("\n")
    return tuple(LogLine(line[:LONGEST_LINE]) for line in lines if line), end


def stamped_page(data: bytes, after: float, *, cut: bool) -> LogPage:
    """A page of lines that each begin with their time; `position` says up to when (`at`).

    Args:
        data: Whole lines, each with an RFC 3339 time and a blank before it.
        after: Unix seconds; what is not later was read before.
        cut: Whether there is more than could be had at once.
    """
    lines = tuple(line for line in _stamped(data) if (line.at or 0.0) > after)
    if cut and not lines:
        # More than a page within one second: it is passed over.
        return LogPage((), {"at": float(int(after) + 1)}, more=True, skipped=True)
    last = max((line.at or 0.0 for line in lines), default=after)
    return LogPage(lines, {"at": last}, more=cut)


def _stamped(data: bytes) -> Iterator[LogLine]:
    for raw in data.splitlines():
        stamp, _, text = raw.partition(b" ")
        try:
            at = datetime.fromisoformat(stamp.decode("ascii", "replace")).timestamp()
        except ValueError:
            # Half of a line whose beginning was cut off, or a word of the engine's own.
            continue
        yield LogLine(text.decode("utf-8", "replace")[:LONGEST_LINE], at)
