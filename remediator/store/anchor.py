"""The head of the audit chain, written down outside the database: a chain cannot know its own end.

An append-only file, one line a commit: `SEQ MAC TIME`. It is written after the commit that it
tells of, so it is never ahead of a database that nobody touched. It needs no fsync for that: what
a power cut takes from it was newer than what it still says.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)

_LINE = re.compile(r"(\d{1,18}) ([0-9a-f]{64}) \S+")
# Some 80,000 lines. A file that only root can rename goes on growing.
_LARGEST = 8 * 2**20
_LAST_LINES = 4096
_SAY_EVERY = 1000


class Anchor:
    """The file, and whether it can be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failing = False
        self._descriptor: int | None = None
        self._torn = False
        self._said = 0

    def note(self, seq: int, mac: str, time: float) -> None:
        """Write the head down. A file that cannot be written stops nothing; the metric says so."""
        stamp = datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        raw = f"{seq} {mac} {stamp}\n".encode()
        try:
            descriptor = self._open()
            # A line that could not be written whole must not spoil the one after it.
            raw = b"\n" + raw if self._torn else raw
            self._torn = os.write(descriptor, raw) != len(raw)
            self.failing = self._torn
        except OSError as error:
            if not self.failing:
                log.warning("the head of the audit cannot be anchored in %s: %s", self.path, error)
            self._torn = self.failing = True
        if seq >= self._said + _SAY_EVERY:
            self.say(seq, mac)
            self.rotate()

    def say(self, seq: int, mac: str) -> None:
        """The log is another place where the head is known."""
        self._said = seq
        log.info("the head of the audit is seq=%d mac=%s", seq, mac)

    def heads(self) -> dict[int, set[str]]:
        """Every head that was written down: the macs by number.

        Raises:
            OSError: there is a file, but it cannot be read.
        """
        found: dict[int, set[str]] = {}
        for path in (self._before, self.path):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for line in path.read_text(encoding="ascii", errors="replace").splitlines():
                    match = _LINE.fullmatch(line)
                    if match:
                        found.setdefault(int(match[1]), set()).add(match[2])
        return found

    @property
    def _before(self) -> Path:
        return self.path.with_name(self.path.name + ".1")

    def rotate(self) -> None:
        """Begin a new file where this one is large; the newest one before stays beside it."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                if size < _LARGEST:
                    return
                file.seek(max(0, size - _LAST_LINES))
                lines = file.read().decode("ascii", "replace").splitlines()
            newest = [line + "\n" for line in lines if _LINE.fullmatch(line)][-1:]
            fresh = self.path.with_name(self.path.name + ".tmp")
            fresh.write_text("".join(newest), encoding="ascii")
            self.path.replace(self._before)
            fresh.replace(self.path)
            # What is open is the file before.
            self.close()
        except OSError as error:
            log.debug("the anchor %s is not rotated: %s", self.path, error)

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o600)
            self._torn = not self._ends_whole()
        return self._descriptor

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return file.read(1) in (b"", b"\n")
