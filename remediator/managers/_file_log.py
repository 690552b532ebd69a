"""The log of a process that was started here: the end of a file that grows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remediator.errors import ManagerError
from remediator.managers._server_log import PAGE_BYTES, LogPage, whole_lines


class FileLog:
    """`ServerLog` over one file; one that was replaced or cut short is read from its beginning."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path

    def read(self, position: Mapping[str, Any], since: float) -> LogPage:  # noqa: ARG002
        """The next lines of the file."""
        try:
            with self._path.open("rb") as file:
                size, inode = file.seek(0, 2), self._path.stat().st_ino
                begin = int(position.get("offset", size))
                if position.get("inode", inode) != inode or begin > size:
                    begin = 0
                skipped = size - begin > 4 * PAGE_BYTES
                if skipped:
                    begin = size - PAGE_BYTES
                file.seek(begin)
                data = file.read(PAGE_BYTES)
        except FileNotFoundError:
            # It comes with the first start of the process, and is then read from its beginning.
            return LogPage((), {"inode": 0, "offset": 0})
        except OSError as error:
            raise ManagerError(f"cannot read {self.where}: {error.strerror}") from None
        lines, taken = whole_lines(data)
        position = {"inode": inode, "offset": begin + taken}
        return LogPage(lines, position, more=begin + len(data) < size, skipped=skipped)
