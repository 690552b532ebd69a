"""The log of a container, from its engine (`GET /containers/{id}/logs`)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from remediator.managers._server_log import PAGE_BYTES, LogPage, stamped_page

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
        return stamped_page(_payload(data, cut=cut), after, cut=cut)


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
