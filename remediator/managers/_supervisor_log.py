"""The log of a program of supervisord, over its XML-RPC (`readProcessStdoutLog`, 4.2 and later)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from remediator.errors import ManagerError
from remediator.managers._server_log import PAGE_BYTES, LogLine, LogPage, whole_lines

_STREAMS = ("Stdout", "Stderr")
_LONGEST_CHARACTER = 4


class SupervisorLog:
    """`ServerLog` over both log files of a program; one that was rotated is read from its beginning."""

    def __init__(self, process: str, call: Callable[..., Any | None]) -> None:
        """`call` makes one call.

        Args:
            process: The program's name.
            call: None where there is no such file or it cannot be read; raises `ManagerError` where
                supervisord does not answer.
        """
        self.where = f"supervisord's log of {process}"
        self._process = process
        self._call = call

    def read(self, position: Mapping[str, Any], since: float) -> LogPage:  # noqa: ARG002
        """The next lines of standard output, then those of standard error."""
        lines: list[LogLine] = []
        then: dict[str, int] = {}
        more = skipped = False
        for stream in _STREAMS:
            page = self._stream(stream, position.get(stream))
            lines += page.lines
            then |= page.position
            more, skipped = more or page.more, skipped or page.skipped
        return LogPage(tuple(lines), then, more=more, skipped=skipped)

    def _stream(self, stream: str, begin: int | None) -> LogPage:
        tail = self._call(f"tailProcess{stream}Log", self._process, 0, 0)
        if tail is None:
            return LogPage((), {stream: 0})
        size = int(tail[1])
        if begin is None:
            return LogPage((), {stream: size})
        begin = 0 if begin > size else begin
        skipped = size - begin > 4 * PAGE_BYTES
        if skipped:
            begin = size - PAGE_BYTES
        length = min(size - begin, PAGE_BYTES)
        data = self._read(stream, begin, length)
        if data is None:
            # What cannot be decoded is passed over, or nothing behind it would ever be seen.
            return LogPage((), {stream: begin + length}, more=begin + length < size, skipped=True)
        found, taken = whole_lines(data)
        return LogPage(found, {stream: begin + taken}, begin + length < size, skipped)

    def _read(self, stream: str, begin: int, length: int) -> bytes | None:
        """So many bytes; a few less where they end within a character. None: no UTF-8 text."""
        if not length:
            # For supervisord that would mean all of it.
            return b""
        for less in range(min(_LONGEST_CHARACTER, length)):
            with contextlib.suppress(ManagerError):
                text = self._call(f"readProcess{stream}Log", self._process, begin, length - less)
                return None if text is None else str(text).encode("utf-8")
        return None
