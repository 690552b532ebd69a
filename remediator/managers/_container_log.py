"""The log of a container, from its engine (`GET /containers/{id}/logs`)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from remediator.managers._server_log import LONGEST_LINE, PAGE_BYTES, LogLine, LogPage

_HEADER = struct.Struct(">BxxxL")
_STREAMS = (0, 1, 2)


class ContainerLog:
    """`ServerLog` over an engine; works with the log drivers that the engine can read back."""

    def __init__(self, container: str, fetch: Callable[[str, int], bytes]) -> None:
        """`fetch` gets at most so many bytes of the log for a query string.

        Args:
            container: Its name.
            fetch: Raises `ManagerError` where the engine does not give the log.
        """
        self.where = f"container {container}"
        self._fetch = fetch

    def read(self, position: Mapping[str, Any], since: float) -> LogPage:
        """The next lines of both streams; the engine counts in seconds, so some come twice."""
        after = max(float(position.get("at", 0.0)), since)
        query = f"stdout=1&stderr=1&timestamps=1&follow=0&since={int(after)}"
        data = self._fetch(query, PAGE_BYTES)
        cut = len(data) >= PAGE_BYTES
        lines = tuple(line for line in _lines(data, cut=cut) if (line.at or 0.0) > after)
        if cut and not lines:
            # More than a page within one second: it is passed over.
            return LogPage((), {"at": float(int(after) + 1)}, more=True, skipped=True)
        last = max((line.at or 0.0 for line in lines), default=after)
        return LogPage(lines, {"at": last}, more=cut)


def _lines(data: bytes, *, cut: bool) -> Iterator[LogLine]:
    for raw in _payload(data, cut=cut).splitlines():
        stamp, _, text = raw.partition(b" ")
        at = _unix(stamp.decode("ascii", "replace"))
        if at is not None:
            yield LogLine(text.decode("utf-8", "replace")[:LONGEST_LINE], at)


def _payload(data: bytes, *, cut: bool) -> bytes:
    """Without the headers of frames, which a container with a terminal does not have."""
    whole = bytearray()
    place = 0
    while place + _HEADER.size <= len(data):
        stream, length = _HEADER.unpack_from(data, place)
        if stream not in _STREAMS or data[place + 1 : place + 4] != b"\0\0\0":
            return data[: data.rfind(b"\n") + 1] if cut else data
        begin = place + _HEADER.size
        if begin + length > len(data):
            break
        whole += data[begin : begin + length]
        if not whole.endswith(b"\n"):
            whole += b"\n"
        place = begin + length
    return bytes(whole)


def _unix(stamp: str) -> float | None:
    """Unix seconds of an RFC 3339 time with nanoseconds."""
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return None
